# PL310: file:8:9: planish.cond(bool[1], then, then, [f32[4]]): then: v is f32[3], got f32[4]
def then(v: f32[3]):
    y = aten.neg(v)
    return y


def main(p: bool[1], x: f32[4]):
    z = planish.cond(p, then, then, [x])
    return z
