# PL310: file:3:9: aten.add(f32[4], f16[4]): element types differ, f32 and f16: cast one with aten.to
def main(x: f32[4], y: f16[4]):
    z = aten.add(x, y)
    return z
