# PL340: file:3:9: expected an operation such as aten.linear(x, w)
def main(x: f32[4]):
    y = open('secret')
    return y
