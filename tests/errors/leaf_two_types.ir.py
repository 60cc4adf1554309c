# PL360: main is not valid: const w is used with two types, f32[4] and f32[1]
def main(x: f32[4]):
    a: f32[4] = const('w')
    b: f32[1] = const('w')
    y = aten.add(a, b)
    return y
