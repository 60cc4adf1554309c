# PL340: file:3:17: const takes one name in quotes
def main(x: f32[4]):
    w: f32[4] = const(w)
    y = aten.add(x, w)
    return y
