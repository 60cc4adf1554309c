def step(total: f32[4], row: f32[4]):
    scaled = aten.mul(row, 1.0)
    after = aten.add(total, scaled)
    twice = aten.neg(after)
    back = aten.neg(twice)
    return after, back


def main(x: f32[6, 4]):
    start = aten.full([4], 0.0, f32)
    both = planish.scan(step, [start], [x])
    total = planish.item(both, 0)
    rows = planish.item(both, 1)
    return total, rows


# becomes
def step(total: f32[4], row: f32[4]):
    after0: f32[4] = aten.add(total, row)
    return after0, after0


def main(x: f32[6, 4]):
    start0: f32[4]             = aten.full([4], 0.0, f32)
    both0: (f32[4], f32[6, 4]) = planish.scan(step, [start0], [x])
    total0: f32[4]             = planish.item(both0, 0)
    rows0: f32[6, 4]           = planish.item(both0, 1)
    return total0, rows0
