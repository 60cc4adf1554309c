# PL310: file:6:9: aten.view(f32[T, 6], [T, 2, 4]): 6*T elements do not fill [T, 2, 4]
T = dim(2, 8)


def main(x: f32[T, 6]):
    y = aten.view(x, [T, 2, 4])
    return y
