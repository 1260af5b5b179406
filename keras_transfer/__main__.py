"""`python -m keras_transfer` is `keras-transfer`."""

from keras_transfer.cli import main

if __name__ == "__main__":
    main()
