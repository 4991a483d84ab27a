"""
How soon phones are answered again after a fault of the network or of the server, between real
kernels, beside a model of the present system: see docs/benchmarks.md.
"""
