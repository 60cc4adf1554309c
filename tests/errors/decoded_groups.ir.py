# PL310: file:3:9: planish.dequant(u8[4, 64], f16[4, 3], 8, 32, f32): scale has 3 groups, 2 are needed
def main(c: u8[4, 64], s: f16[4, 3]):
    y = planish.dequant(c, s, 8, 32)
    return y
