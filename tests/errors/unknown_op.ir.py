# PL306: file:3:9: aten.liner is not in the dialect; did you mean aten.linear, aten.ne, aten.le?
def main(x: f32[4]):
    y = aten.liner(x, x)
    return y
