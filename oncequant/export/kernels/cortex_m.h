#ifdef NETWORK_CORTEX_M
/* Dot products with the DSP instructions of Cortex-M4, M7, M33 and M55: two channels by two output pixels at once.
 * Columns are 16 bits wide, in the order 0 2 1 3 of each four inputs, in which masks unpack codes; those of the two
 * pixels alternate, step by step, so that one register points at both. */

enum { COLUMNS = 2 };
typedef int16_t network_column;

/* Channels `words` and, with `two`, the next one. */
INLINE void pair_dots(const int bits, const int count, const int two, const network_column *x, int32_t stride,
                      int32_t inputs, const uint32_t *words, int32_t lanes, int32_t *sums0, int32_t *sums1)
{
    const network_column *const end = x + COLUMNS * stride;
    network_words part = first_words(bits, words, lanes, (inputs + 3) / 4);
    int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0; /* channels a and b, output pixels 0 and 1 */
    uint32_t unit = 0x00010001u;
    __asm__("" : "+r"(unit)); /* masks in registers: then a shift and a mask are one instruction */
    while (x < end) {
        const network_words next = {part.of8 + 1, part.of4 + 1, part.of2 + 1, part.of1 + 1};
        UNROLL for (int s = 0; s < chunk_steps(bits); s++, x += 4 * COLUMNS) {
            UNROLL for (int odd = 0; odd < 2; odd++) {
                const int16x2_t x0 = (int16x2_t)load_word(x + 2 * odd), x1 = (int16x2_t)load_word(x + 4 + 2 * odd);
                const int16x2_t a = (int16x2_t)codes_of_word(bits, part, lanes, s, 8 * odd, unit);
                a0 = __smlad(x0, a, a0);
                if (count > 1) a1 = __smlad(x1, a, a1);
                if (two) {
                    const int16x2_t b = (int16x2_t)codes_of_word(bits, next, lanes, s, 8 * odd, unit);
                    b0 = __smlad(x0, b, b0);
                    if (count > 1) b1 = __smlad(x1, b, b1);
                }
            }
        }
        part = next_words(bits, part, lanes);
    }
    sums0[0] = a0;
    if (two) sums0[1] = b0;
    if (count > 1) sums1[0] = a1;
    if (two && count > 1) sums1[1] = b1;
}

INLINE void dots(const int bits, const int count, const network_layer *l UNUSED, const network_column *columns,
                 int32_t stride, int32_t inputs, const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    int32_t lane = 0;
    for (; lane + 1 < lanes; lane += 2)
        pair_dots(bits, count, 1, columns, stride, inputs, words + lane, lanes, sums[0] + lane, sums[1] + lane);
    if (lane < lanes)
        pair_dots(bits, count, 0, columns, stride, inputs, words + lane, lanes, sums[0] + lane, sums[1] + lane);
}

/* ---- depthwise convolutions: one tap of four channels at once */

/* Weights of block by block of four channels, in a block tap by tap: a word of channels 0 and 2, one of 1 and 3. */
INLINE void quad_weights_of(const int bits, const network_layer *l, uint32_t *weights)
{
    const int32_t taps = l->kernel * l->kernel, blocks = l->channels / 4;
    const int16x2_t offset = (int16x2_t)((uint32_t)l->offset * 0x00010001u);
    network_words part = first_words(bits, l->weights, 1, blocks * taps);
    uint32_t *to = weights;
    for (int32_t left = blocks * taps, block = 0, tap = 0; left > 0; left -= chunk_steps(bits)) {
        UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
            if (s >= left) break;
            const uint32_t even = codes_of_word(bits, part, 1, s, 0, 0x00010001u) << (l->factor - 1);
            const uint32_t odd = codes_of_word(bits, part, 1, s, 8, 0x00010001u) << (l->factor - 1);
            to[0] = (uint32_t)__ssub16((int16x2_t)even, offset);
            to[1] = (uint32_t)__ssub16((int16x2_t)odd, offset);
            to += 2 * taps;
            if (++block == blocks) block = 0, to = weights + 2 * ++tap;
        }
        part = next_words(bits, part, 1);
    }
}

KERNEL void quad_weights(const network_layer *l, uint32_t *weights)
{
    switch (l->bits) {
#define CASE(BITS) \
    case BITS: quad_weights_of(BITS, l, weights); break;
        NETWORK_BITS(CASE)
#undef CASE
    }
}

/* The first tap on the map, and the one behind the last, of a kernel row or column that begins at `from`. */
INLINE int32_t first_tap(int32_t from, int32_t step) { return from < 0 ? (step - 1 - from) / step : 0; }
INLINE int32_t end_tap(const network_layer *l, int32_t from, int32_t step)
{
    return least(l->kernel, (l->size - from + step - 1) / step);
}

/* As `depthwise`, for a multiple of four channels. Taps outside of the map count only where zero has another code than
 * 0. */
KERNEL void quad_depthwise(const network_layer *l, const uint8_t *x, uint8_t *y, uint8_t *scratch)
{
    const int32_t channels = l->channels, kernel = l->kernel, step = DILATION(l), pitch = step * channels;
    uint32_t *const weights = (uint32_t *)(void *)scratch;
    quad_weights(l, weights);
    for (int32_t pixel = 0; pixel < l->out_size * l->out_size; pixel++) {
        const int32_t top = pixel / l->out_size * l->stride - l->pad, left = pixel % l->out_size * l->stride - l->pad;
        const int32_t row = first_tap(top, step), end_row = end_tap(l, top, step);
        const int32_t column = first_tap(left, step), columns = end_tap(l, left, step) - column;
        const uint8_t *from = x + ((top + row * step) * l->size + left + column * step) * channels;
        const uint32_t *first = weights + 2 * (row * kernel + column);
        for (int32_t channel = 0; channel < channels; channel += 4, from += 4, first += 2 * kernel * kernel) {
            const uint8_t *in = from;
            const uint32_t *w = first;
            int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            for (int32_t r = row; r < end_row; r++, in += (l->size - columns) * pitch, w += 2 * (kernel - columns))
                for (int32_t left_over = columns; left_over > 0; left_over--, in += pitch, w += 2) {
                    const uint32_t word = load_word(in);
                    const int32_t even = (int32_t)__uxtb16(word), odd = (int32_t)__uxtb16(word >> 8);
                    s0 = __smlabb(even, (int32_t)w[0], s0);
                    s2 = __smlatt(even, (int32_t)w[0], s2);
                    s1 = __smlabb(odd, (int32_t)w[1], s1);
                    s3 = __smlatt(odd, (int32_t)w[1], s3);
                }
            if (l->in_zero && (end_row - row) * columns < kernel * kernel) {
                w = first - 2 * (row * kernel + column);
                for (int32_t r = 0; r < kernel; r++)
                    for (int32_t c = 0; c < kernel; c++, w += 2) {
                        if (r >= row && r < end_row && c >= column && c < column + columns) continue;
                        s0 = __smlabb(l->in_zero, (int32_t)w[0], s0);
                        s2 += l->in_zero * ((int32_t)w[0] >> 16);
                        s1 = __smlabb(l->in_zero, (int32_t)w[1], s1);
                        s3 += l->in_zero * ((int32_t)w[1] >> 16);
                    }
            }
            const int32_t *const bias = l->bias + channel;
            const float *const ratio = l->ratio + channel;
            *y++ = scaled(accumulator(s0, l->shift, bias[0]), ratio[0], l->zero, l->max);
            *y++ = scaled(accumulator(s1, l->shift, bias[1]), ratio[1], l->zero, l->max);
            *y++ = scaled(accumulator(s2, l->shift, bias[2]), ratio[2], l->zero, l->max);
            *y++ = scaled(accumulator(s3, l->shift, bias[3]), ratio[3], l->zero, l->max);
        }
    }
}
#endif
