# PL340: file:2: not a program: invalid syntax
def main(x: f32[4]:
    return x
