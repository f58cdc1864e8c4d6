/* What kernels read: the inputs of output pixels gathered in columns, and weights of depthwise convolutions. */

INLINE int32_t padded_inputs(int32_t inputs, int32_t bits)
{
    const int32_t together = 4 * chunk_steps(bits);
    return (inputs + together - 1) / together * together;
}

INLINE void copy_bytes(uint8_t *to, const uint8_t *from, int32_t count)
{
#if defined(__SSE2__) || defined(NETWORK_NEON)
    for (; count >= 16; count -= 16, to += 16, from += 16) memcpy(to, from, 16);
#endif
    for (; count >= 4; count -= 4, to += 4, from += 4) memcpy(to, from, 4);
    for (; count > 0; count--) *to++ = *from++;
}

INLINE void fill_bytes(uint8_t *to, uint8_t value, int32_t count)
{
    while (count-- > 0) *to++ = value;
}

#ifdef NETWORK_DILATED
/* As `gather`, tap by tap. */
KERNEL void gather_apart(const network_layer *l, const uint8_t *x, int32_t top, int32_t left, uint8_t *column)
{
    const int32_t channels = l->channels, dilation = l->dilation, reach = l->kernel * dilation;
    for (int32_t row = top; row < top + reach; row += dilation)
        for (int32_t at = left; at < left + reach; at += dilation, column += channels) {
            if (row >= 0 && row < l->size && at >= 0 && at < l->size)
                copy_bytes(column, x + (row * l->size + at) * channels, channels);
            else
                fill_bytes(column, (uint8_t)l->in_zero, channels);
        }
}
#endif

/* What an output pixel reads, kernel row by kernel row, from `top` and `left` on; outside the map the zero point. */
KERNEL void gather(const network_layer *l, const uint8_t *x, int32_t top, int32_t left, uint8_t *column)
{
    const int32_t kernel = l->kernel, channels = l->channels, pitch = l->size * channels;
#ifdef NETWORK_DILATED
    if (l->dilation > 1) {
        gather_apart(l, x, top, left, column);
        return;
    }
#endif
    if (top >= 0 && left >= 0 && top + kernel <= l->size && left + kernel <= l->size) {
        const uint8_t *in = x + top * pitch + left * channels;
        for (int32_t row = 0; row < kernel; row++, in += pitch, column += kernel * channels)
            copy_bytes(column, in, kernel * channels);
        return;
    }
    const int32_t before = left < 0 ? -left : 0, until = least(kernel, l->size - left);
    for (int32_t row = top; row < top + kernel; row++, column += kernel * channels) {
        const int inside = row >= 0 && row < l->size;
        const int32_t first = inside ? before * channels : kernel * channels, last = inside ? until * channels : first;
        fill_bytes(column, (uint8_t)l->in_zero, first);
        if (inside) copy_bytes(column + first, x + row * pitch + (left + before) * channels, last - first);
        fill_bytes(column + last, (uint8_t)l->in_zero, kernel * channels - last);
    }
}

/* ---- depthwise convolutions: two taps at once, of LANES channels */

/* Weights of block by block of channels, in a block pair by pair of taps, in a pair channel by channel. */
KERNEL void unpack_weights(const network_layer *l, int16_t *weights)
{
    const int32_t channels = l->channels, taps = l->kernel * l->kernel, pairs = (taps + 1) / 2, count = taps * channels;
    int32_t tap = 0, channel = 0;
    memset(weights, 0, (size_t)((channels + LANES - 1) / LANES * pairs * LANES * 4));
    switch (l->bits) {
#define CASE(BITS)                                                                                                 \
    case BITS: {                                                                                                   \
        network_words part = first_words(BITS, l->weights, 1, (count + 3) / 4);                                    \
        for (int32_t at = 0; at < count; at += 4 * chunk_steps(BITS)) {                                            \
            UNROLL for (int s = 0; s < chunk_steps(BITS); s++) {                                                   \
                uint32_t code = codes_of_word(BITS, part, 1, s, 0, 0x01010101u);                                   \
                for (int32_t j = at + 4 * s; j < least(count, at + 4 * s + 4); j++, code >>= 8) {                  \
                    const int32_t block = (channel / LANES * pairs + tap / 2) * LANES + channel % LANES;           \
                    weights[2 * block + tap % 2] = (int16_t)((int32_t)(code & 255) * l->factor - l->offset);       \
                    if (++channel == channels) channel = 0, tap++;                                                 \
                }                                                                                                  \
            }                                                                                                      \
            part = next_words(BITS, part, 1);                                                                      \
        }                                                                                                          \
        break;                                                                                                     \
    }
        NETWORK_BITS(CASE)
#undef CASE
    }
}

/* Where the taps of an output pixel are, one more to make pairs; outside the map at `outside`. */
INLINE void tap_rows(const network_layer *l, const uint8_t *x, int32_t pixel, const uint8_t *outside, const uint8_t **rows)
{
    const int32_t top = pixel / l->out_size * l->stride - l->pad, step = DILATION(l), reach = l->kernel * step;
    const int32_t left = pixel % l->out_size * l->stride - l->pad;
    int32_t tap = 0;
    for (int32_t row = top; row < top + reach; row += step)
        for (int32_t column = left; column < left + reach; column += step) {
            const int inside = row >= 0 && row < l->size && column >= 0 && column < l->size;
            rows[tap++] = inside ? x + (row * l->size + column) * l->channels : outside;
        }
    rows[tap] = outside; /* its weights are zero */
}
