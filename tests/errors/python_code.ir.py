# PL340: file:2:1: expected a dimension or a program
import os


def main(x: f32[4]):
    y = aten.neg(x)
    return y
