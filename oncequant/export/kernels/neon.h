#ifdef NETWORK_NEON
/* Dot products with the dot-product instructions of aarch64: four channels, four inputs of each, in a vector. */

enum { COLUMNS = 4 };
typedef uint8_t network_column;

DEFINE_CODES(codes_of_channels, uint32x4_t, vld1q_u32)

INLINE void dots(const int bits, const int count, const network_layer *l UNUSED, const network_column *columns,
                 int32_t stride, int32_t inputs, const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    if (lanes < LANES) {
        leftover_dots(bits, count, columns, stride, inputs, words, lanes, sums);
        return;
    }
    for (int32_t half = 0; half < LANES; half += 4) {
        network_words part = first_words(bits, words + half, LANES, (inputs + 3) / 4);
        uint32x4_t sum[4];
        for (int p = 0; p < count; p++) sum[p] = vdupq_n_u32(0);
        for (int32_t at = 0; at < stride; at += 4 * chunk_steps(bits)) {
            UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
                const uint8x16_t code = (uint8x16_t)codes_of_channels(bits, part, LANES, s, 0, 0x01010101u);
                UNROLL for (int p = 0; p < count; p++) {
                    const uint32x4_t x = vdupq_n_u32(load_word(columns + p * stride + at + 4 * s));
                    sum[p] = vdotq_u32(sum[p], code, (uint8x16_t)x);
                }
            }
            part = next_words(bits, part, LANES);
        }
        for (int p = 0; p < count; p++) vst1q_s32(sums[p] + half, (int32x4_t)sum[p]);
    }
}
#endif
