# passes: int8{group=32,only=right},int3{group=16,symmetric=true}
def main(x: f32[2, 64], image: f32[1, 8, 9, 9]):
    conv: f32[16, 8, 3, 3] = const('conv.weight')
    right: f32[64, 32] = const('right')
    y = aten.matmul(x, right)
    i = aten.convolution(image, conv, None, [1, 1], [1, 1], [1, 1])
    return y, i


# becomes
def main(x: f32[2, 64], image: f32[1, 8, 9, 9]):
    right_int8_group_32_codes: u8[32, 64]                      = const('right#int8{group=32}/codes')
    right_int8_group_32_scale: f16[32, 2]                      = const('right#int8{group=32}/scale')
    right_int8_group_32_zero: u8[32, 2]                        = const('right#int8{group=32}/zero')
    right0: f32[32, 64]                                        = planish.dequant(right_int8_group_32_codes, right_int8_group_32_scale, right_int8_group_32_zero, 32)
    right1: f32[64, 32]                                        = aten.permute(right0, [1, 0])
    y0: f32[2, 32]                                             = aten.matmul(x, right1)
    conv_weight_int3_group_16_symmetric_true_codes: u8[16, 27] = const('conv.weight#int3{group=16,symmetric=true}/codes')
    conv0: u8[16, 72]                                          = planish.unpack(conv_weight_int3_group_16_symmetric_true_codes, 3, 72)
    conv_weight_int3_group_16_symmetric_true_scale: f16[16, 5] = const('conv.weight#int3{group=16,symmetric=true}/scale')
    conv1: f32[16, 72]                                         = planish.dequant(conv0, conv_weight_int3_group_16_symmetric_true_scale, 4, 16)
    conv2: f32[16, 8, 3, 3]                                    = aten.view(conv1, [16, 8, 3, 3])
    i0: f32[1, 16, 9, 9]                                       = aten.convolution(image, conv2, None, [1, 1], [1, 1], [1, 1])
    return y0, i0
