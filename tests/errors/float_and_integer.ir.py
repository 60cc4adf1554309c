# PL310: file:3:9: aten.add(i64[4], 0.5): a float number meets i64: cast with aten.to first
def main(x: i64[4]):
    y = aten.add(x, 0.5)
    return y
