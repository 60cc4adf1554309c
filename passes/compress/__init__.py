"""Compression of weights: codecs and the pass that replaces constants by what a codec makes of them."""
