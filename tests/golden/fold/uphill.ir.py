def main(x: f32[2, 64]):
    codes: u8[64, 32] = const('w#int4{group=32,symmetric=true}/codes')
    scale: f16[64, 2] = const('w#int4{group=32,symmetric=true}/scale')
    unpacked = planish.unpack(codes, 4, 64)
    decoded = planish.dequant(unpacked, scale, 8, 32)
    half: f16[64, 64] = const('half')
    wide = aten.to(half, f32)
    positions = aten.arange(0, 64, dtype=f32)
    halves = aten.mul(positions, 0.5)
    y = aten.linear(x, decoded)
    z = aten.linear(y, wide)
    r = aten.add(z, halves)
    return r


# becomes
def main(x: f32[2, 64]):
    w_int4_group_32_symmetric_true_codes: u8[64, 32] = const('w#int4{group=32,symmetric=true}/codes')
    unpacked0: u8[64, 64]                            = planish.unpack(w_int4_group_32_symmetric_true_codes, 4, 64)
    w_int4_group_32_symmetric_true_scale: f16[64, 2] = const('w#int4{group=32,symmetric=true}/scale')
    decoded0: f32[64, 64]                            = planish.dequant(unpacked0, w_int4_group_32_symmetric_true_scale, 8, 32)
    y0: f32[2, 64]                                   = aten.linear(x, decoded0)
    half: f16[64, 64]                                = const('half')
    wide0: f32[64, 64]                               = aten.to(half, f32)
    z0: f32[2, 64]                                   = aten.linear(y0, wide0)
    positions0: f32[64]                              = aten.arange(0, 64, dtype=f32)
    halves0: f32[64]                                 = aten.mul(positions0, 0.5)
    r0: f32[2, 64]                                   = aten.add(z0, halves0)
    return r0
