# Runs README's first command, the digits study, and leaves its report in /work:
#
#     docker build -t keras_transfer .
#     docker run --rm -v "$PWD/runs:/work/runs" keras_transfer
#
# Any other command is given behind the name:
#
#     docker run --rm -v "$PWD:/work" keras_transfer train --gin_file=p_mnist.gin \
#         --work_dir=runs/p
FROM python:3.12-slim

WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY bin bin
COPY gin gin
COPY keras_transfer keras_transfer
RUN pip install --no-cache-dir .

# Not root; --user "$(id -u)" makes what is written your own.
RUN mkdir -m 777 /work
ENV HOME=/tmp
USER nobody
WORKDIR /work
ENTRYPOINT ["keras-transfer"]
CMD ["reproduce", "--gin_file=study_digits.gin", "--work_dir=runs/study_digits"]
