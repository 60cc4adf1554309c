# passes: int4{group=32}
T = dim(2, 512)


def main(ids: i64[T]):
    table: f32[40, 64] = const('embed.weight')
    norm: f32[64] = const('norm.weight')
    h = aten.embedding(table, ids)
    n = aten.rms_norm(h, [64], norm)
    logits = aten.linear(n, table)
    return logits


# becomes
T = dim(2, 512)


def main(ids: i64[T]):
    embed_weight_int4_group_32_codes: u8[40, 32] = const('embed.weight#int4{group=32}/codes')
    embed0: u8[40, 64]                           = planish.unpack(embed_weight_int4_group_32_codes, 4, 64)
    embed_weight_int4_group_32_scale: f16[40, 2] = const('embed.weight#int4{group=32}/scale')
    embed_weight_int4_group_32_zero: u8[40, 1]   = const('embed.weight#int4{group=32}/zero')
    embed1: u8[40, 2]                            = planish.unpack(embed_weight_int4_group_32_zero, 4, 2)
    embed2: f32[40, 64]                          = planish.dequant(embed0, embed_weight_int4_group_32_scale, embed1, 32)
    h0: f32[T, 64]                               = aten.embedding(embed2, ids)
    norm: f32[64]                                = const('norm.weight')
    n0: f32[T, 64]                               = aten.rms_norm(h0, [64], norm)
    logits0: f32[T, 40]                          = aten.linear(n0, embed2)
    return logits0
