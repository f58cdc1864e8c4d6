/* Convolutions and linear layers: the inputs of a few output pixels are gathered in columns, then multiplied. */

INLINE void copy_bytes(uint8_t *to, const uint8_t *from, int32_t count)
{
    for (; count >= 4; count -= 4, to += 4, from += 4) memcpy(to, from, 4);
    for (; count > 0; count--) *to++ = *from++;
}

INLINE void fill_bytes(uint8_t *to, uint8_t value, int32_t count)
{
    while (count-- > 0) *to++ = value;
}

/* What one output pixel reads, kernel row by kernel row; outside the map the zero point. */
static void gather(const network_layer *l, const uint8_t *x, int32_t pixel, uint8_t *column)
{
    const int32_t top = pixel / l->out_size * l->stride - l->kernel / 2;
    const int32_t left = pixel % l->out_size * l->stride - l->kernel / 2;
    const int32_t before = left < 0 ? -left : 0, until = least(l->kernel, l->size - left);
    for (int32_t row = top; row < top + l->kernel; row++, column += l->kernel * l->channels) {
        if (row < 0 || row >= l->size) {
            fill_bytes(column, (uint8_t)l->in_zero, l->kernel * l->channels);
            continue;
        }
        fill_bytes(column, (uint8_t)l->in_zero, before * l->channels);
        copy_bytes(column + before * l->channels, x + (row * l->size + left + before) * l->channels,
                   (until - before) * l->channels);
        fill_bytes(column + until * l->channels, (uint8_t)l->in_zero, (l->kernel - until) * l->channels);
    }
}

/* Column `p` of an output pixel, zero up to `stride`; returns the sum of its codes. */
static int32_t make_column(const network_layer *l, const uint8_t *x, int32_t pixel, uint8_t *scratch,
                           network_column *columns, int32_t p, int32_t stride, int32_t inputs)
{
    network_column *const column = columns + p * stride;
    int32_t sum = 0;
#ifdef NETWORK_CORTEX_M
    const int32_t words = (inputs + 3) / 4;
    gather(l, x, pixel, scratch);
    fill_bytes(scratch + inputs, 0, 4 * words - inputs);
    for (int32_t i = 0; i < words; i++) {
        const uint32_t word = load_word(scratch + 4 * i), low = __uxtb16(word), high = __uxtb16(word >> 8);
        memcpy(column + 4 * i, &low, 4);
        memcpy(column + 4 * i + 2, &high, 4);
        sum = (int32_t)__usada8(word, 0, (uint32_t)sum);
    }
    for (int32_t i = 4 * words; i < stride; i++) column[i] = 0;
#else
    (void)scratch;
    gather(l, x, pixel, column);
    fill_bytes(column + inputs, 0, stride - inputs);
    for (int32_t i = 0; i < inputs; i++) sum += column[i];
#endif
    return sum;
}

/* Sums of `count` columns (COLUMNS, or 1) for one block of channels; returns its words. */
static int32_t block_dots(const network_layer *l, int32_t count, const network_column *columns, int32_t stride,
                          int32_t inputs, const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    switch (l->bits) {
#define CASE(BITS)                                                                                \
    case BITS:                                                                                    \
        if (count == COLUMNS)                                                                     \
            dots(BITS, COLUMNS, l, columns, stride, inputs, words, lanes, sums);                  \
        else                                                                                      \
            dots(BITS, 1, l, columns, stride, inputs, words, lanes, sums);                        \
        return block_words(BITS, lanes, (inputs + 3) / 4);
        NETWORK_BITS(CASE)
#undef CASE
    }
    return 0;
}

INLINE int32_t padded_inputs(int32_t inputs, int32_t bits)
{
    const int32_t together = 4 * chunk_steps(bits);
    return (inputs + together - 1) / together * together;
}

/* A convolution to codes, or, with `logits`, a linear layer. */
static void layer(const network_layer *l, const uint8_t *x, uint8_t *y, float *logits, uint8_t *scratch)
{
    const int32_t inputs = l->kernel * l->kernel * l->channels, stride = padded_inputs(inputs, l->bits);
    const int32_t pixels = l->out_size * l->out_size;
    network_column *const columns = (network_column *)(void *)(scratch + (inputs + 15) / 16 * 16);
    const float zero = (float)l->zero, max = (float)l->max;
    for (int32_t first = 0, count; first < pixels; first += count) {
        int32_t of_codes[COLUMNS], sums[COLUMNS][LANES];
        const uint32_t *words = l->weights;
        count = pixels - first < COLUMNS ? 1 : COLUMNS;
        for (int32_t p = 0; p < count; p++)
            of_codes[p] = l->offset * make_column(l, x, first + p, scratch, columns, p, stride, inputs);
        for (int32_t channel = 0; channel < l->out_channels; channel += LANES) {
            const int32_t lanes = least(LANES, l->out_channels - channel);
            const int32_t *bias = l->bias + channel;
            const float *ratio = l->ratio + channel;
            words += block_dots(l, count, columns, stride, inputs, words, lanes, sums);
            for (int32_t p = 0; p < count; p++) {
                uint8_t *out = y + (first + p) * l->out_channels + channel;
                float value[LANES];
                if (lanes == LANES) /* a constant number of rounds is compiled to vectors */
                    for (int32_t i = 0; i < LANES; i++)
                        value[i] = accumulator(sums[p][i] * l->factor - of_codes[p], l->shift, bias[i]) * ratio[i];
                else
                    for (int32_t i = 0; i < lanes; i++)
                        value[i] = accumulator(sums[p][i] * l->factor - of_codes[p], l->shift, bias[i]) * ratio[i];
                if (logits)
                    for (int32_t i = 0; i < lanes; i++) logits[channel + i] = value[i];
                else if (lanes == LANES)
                    for (int32_t i = 0; i < LANES; i++) out[i] = code_of(value[i], zero, max);
                else
                    for (int32_t i = 0; i < lanes; i++) out[i] = code_of(value[i], zero, max);
            }
        }
    }
}

/* Weights of a depthwise convolution, kernel position by kernel position, as numbers. */
UNUSED static void unpack_weights(const network_layer *l, int16_t *to)
{
    const int32_t count = l->kernel * l->kernel * l->channels;
    switch (l->bits) {
#define CASE(BITS)                                                                                  \
    case BITS: {                                                                                    \
        network_words part = first_words(BITS, l->weights, 1, (count + 3) / 4);                     \
        for (int32_t at = 0; at < count; at += 4 * chunk_steps(BITS)) {                             \
            UNROLL for (int s = 0; s < chunk_steps(BITS); s++) {                                    \
                const uint32_t code = codes_of_word(BITS, part, 1, s, 0, 0x01010101u);              \
                for (int j = 0; j < 4; j++)                                                         \
                    *to++ = (int16_t)((int32_t)(code >> 8 * j & 255) * l->factor - l->offset);      \
            }                                                                                       \
            part = next_words(BITS, part, 1);                                                       \
        }                                                                                           \
        break;                                                                                      \
    }
        NETWORK_BITS(CASE)
#undef CASE
    }
}

UNUSED static void depthwise(const network_layer *l, const uint8_t *x, uint8_t *y, uint8_t *scratch)
{
    const int32_t channels = l->channels, taps = l->kernel * l->kernel;
    int32_t *const sums = (int32_t *)(void *)scratch;
    int16_t *const weights = (int16_t *)(void *)(scratch + 4 * channels);
    uint8_t *const outside = scratch + 4 * channels + 2 * padded_inputs(taps * channels, l->bits);
    const float zero = (float)l->zero, max = (float)l->max;
    unpack_weights(l, weights);
    fill_bytes(outside, (uint8_t)l->in_zero, channels);
    for (int32_t pixel = 0; pixel < l->out_size * l->out_size; pixel++, y += channels) {
        const int32_t top = pixel / l->out_size * l->stride - l->kernel / 2;
        const int32_t left = pixel % l->out_size * l->stride - l->kernel / 2;
        for (int32_t i = 0; i < channels; i++) sums[i] = 0;
        for (int32_t tap = 0; tap < taps; tap++) {
            const int32_t row = top + tap / l->kernel, column = left + tap % l->kernel;
            const int inside = row >= 0 && row < l->size && column >= 0 && column < l->size;
            const uint8_t *const in = inside ? x + (row * l->size + column) * channels : outside;
            const int16_t *const weight = weights + tap * channels;
            for (int32_t i = 0; i < channels; i++) sums[i] += (int32_t)in[i] * weight[i];
        }
        for (int32_t i = 0; i < channels; i++) 
            y[i] = code_of(accumulator(sums[i], l->shift, l->bias[i]) * l->ratio[i], zero, max);
    }
}

/* ---- operations without weights */

/* Raw pixels to codes, by a table of 256 for each channel. */
static void from_pixels(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, const uint8_t *table)
{
    for (int32_t i = 0; i < pixels; i++)
        for (int32_t c = 0; c < channels; c++, x++) *y++ = table[256 * c + *x];
}

UNUSED static void lookup(const uint8_t *x, uint8_t *y, int32_t count, const uint8_t *table)
{
    for (int32_t i = 0; i < count; i++) y[i] = table[x[i]];
}

UNUSED static void add(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, float ratio_a, float ratio_b,
                       float offset, int32_t max)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = code_of(fused(ratio_a, a[i], fused(ratio_b, b[i], offset)), 0.0f, (float)max);
}

/* A map times one number for each channel. */
UNUSED static void multiply(const uint8_t *x, const uint8_t *gate, uint8_t *y, int32_t pixels, int32_t channels,
                            int32_t zero_x, int32_t zero_gate, float ratio, int32_t zero, int32_t max)
{
    for (int32_t i = 0; i < pixels; i++)
        for (int32_t c = 0; c < channels; c++, x++) {
            const float product = (float)((*x - zero_x) * (gate[c] - zero_gate)) * ratio;
            *y++ = code_of(product + (float)zero, 0.0f, (float)max);
        }
}

UNUSED static void mean(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t zero_x, float ratio,
                        int32_t zero, int32_t max, uint8_t *scratch)
{
    int32_t *const sums = (int32_t *)(void *)scratch;
    for (int32_t c = 0; c < channels; c++) sums[c] = -pixels * zero_x;
    for (int32_t i = 0; i < pixels; i++)
        for (int32_t c = 0; c < channels; c++) sums[c] += *x++;
    for (int32_t c = 0; c < channels; c++) y[c] = code_of((float)sums[c] * ratio, (float)zero, (float)max);
}

/* 3 x 3 with stride 2; outside the map nothing. */
UNUSED static void maxpool(const uint8_t *x, uint8_t *y, int32_t size, int32_t channels)
{
    for (int32_t i = 0; i < size; i += 2)
        for (int32_t j = 0; j < size; j += 2, y += channels) {
            fill_bytes(y, 0, channels);
            for (int32_t row = i ? i - 1 : 0; row < least(size, i + 2); row++)
                for (int32_t column = j ? j - 1 : 0; column < least(size, j + 2); column++) {
                    const uint8_t *in = x + (row * size + column) * channels;
                    for (int32_t c = 0; c < channels; c++) y[c] = in[c] > y[c] ? in[c] : y[c];
                }
        }
}

/* Every second pixel. */
UNUSED static void subsample(const uint8_t *x, uint8_t *y, int32_t size, int32_t channels)
{
    for (int32_t i = 0; i < size; i += 2)
        for (int32_t j = 0; j < size; j += 2, y += channels) copy_bytes(y, x + (i * size + j) * channels, channels);
}

/* More channels, all zero, before and after. */
UNUSED static void pad_channels(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t before,
                                int32_t after, int32_t zero)
{
    for (int32_t i = 0; i < pixels; i++, x += channels, y += before + channels + after) {
        fill_bytes(y, (uint8_t)zero, before);
        copy_bytes(y + before, x, channels);
        fill_bytes(y + before + channels, (uint8_t)zero, after);
    }
}
