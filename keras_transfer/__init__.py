"""What is being transferred in transfer learning, and where in the network.

Models, data pipelines, training and analyses that reproduce Neyshabur, Sedghi
and Zhang, "What is being transferred in transfer learning?" (NeurIPS 2020), for
any Keras model and any images.
"""
