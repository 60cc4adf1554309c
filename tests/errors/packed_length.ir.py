# PL310: file:3:9: planish.unpack(u8[4, 8], 4, 20): bytes for 20 codes of 4 bits differ, 8 and 10
def main(c: u8[4, 8]):
    y = planish.unpack(c, 4, 20)
    return y
