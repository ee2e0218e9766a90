"""Reference evaluation of Core ML ML Programs: reads an `.mlpackage` alone and computes it in torch.

It shows that the graph and the weights in the package compute what the source model computes. It says nothing of
Apple's runtime: what it yields is *reference-evaluated*, never *device-verified*.
"""
