/* Convolutions and linear layers: the inputs of a few output pixels are gathered in columns, then multiplied. */

/* Column `p`, of the output pixel that reads from `top` and `left` on, zero up to `stride`; returns the sum of its codes. */
KERNEL int32_t make_column(const network_layer *l, const uint8_t *x, int32_t top, int32_t left, uint8_t *scratch,
                           network_column *columns, int32_t p, int32_t stride, int32_t inputs)
{
    int32_t sum = 0;
#ifdef NETWORK_CORTEX_M
    const int32_t steps = (inputs + 3) / 4;
    network_column *column = columns + 4 * p;
    gather(l, x, top, left, scratch);
    fill_bytes(scratch + inputs, 0, 4 * steps - inputs);
    for (int32_t i = 0; i < stride / 4; i++, column += 4 * COLUMNS) {
        const uint32_t word = i < steps ? load_word(scratch + 4 * i) : 0;
        const uint32_t even = (uint32_t)__uxtb16(word), odd = (uint32_t)__uxtb16(word >> 8);
        memcpy(column, &even, 4);
        memcpy(column + 2, &odd, 4);
        sum = (int32_t)__usada8(word, 0, (uint32_t)sum);
    }
#else
    network_column *const column = columns + p * stride;
    (void)scratch;
    gather(l, x, top, left, column);
    fill_bytes(column + inputs, 0, stride - inputs);
    for (int32_t i = 0; i < inputs; i++) sum += column[i];
#endif
    return sum;
}

/* Codes of LANES channels of one output pixel, whose weights times inputs are factor * sums - subtracted. */
INLINE void eight_codes(const network_layer *l, const int32_t *sums, int32_t factor, int32_t subtracted, int32_t channel,
                        uint8_t *codes)
{
    const int32_t *const bias = l->bias + channel;
    const float *const ratio = l->ratio + channel;
    for (int32_t i = 0; i < LANES; i++)
        codes[i] = scaled(accumulator(sums[i] * factor - subtracted, l->shift, bias[i]), ratio[i], l->zero, l->max);
}

/* Sums of `count` columns (COLUMNS, or 1) for one block of channels; returns its words. */
KERNEL int32_t block_dots(const network_layer *l, int32_t count, const network_column *columns, int32_t stride,
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

/* A convolution to codes, or, with `logits`, a linear layer. */
KERNEL void layer(const network_layer *l, const uint8_t *x, uint8_t *y, float *logits, uint8_t *scratch)
{
    const int32_t inputs = l->kernel * l->kernel * l->channels, stride = padded_inputs(inputs, l->bits);
    const int32_t pixels = l->out_size * l->out_size;
    network_column *const columns = (network_column *)(void *)(scratch + (inputs + 15) / 16 * 16);
    int32_t top = -l->pad, left = top, done = 0; /* channels */
    const int32_t right = left + l->out_size * l->stride;
    IF_AMX(if (!logits && amx_layer(l, x, y)) return;)
    IF_VNNI(done = vnni_layer(l, x, y, logits);)
    IF_AVX2(if (!done) done = avx2_layer(l, x, y, logits, scratch);)
    for (int32_t first = 0, count; first < pixels && done < l->out_channels; first += count) {
        int32_t inputs_sum[COLUMNS], sums[COLUMNS][LANES];
        const uint32_t *words = l->weights + words_before(l, done);
        count = pixels - first < COLUMNS ? 1 : COLUMNS;
        for (int32_t p = 0; p < count; p++) {
            inputs_sum[p] = make_column(l, x, top, left, scratch, columns, p, stride, inputs);
            left += l->stride;
            if (left < right) continue;
            left = -l->pad; /* the next row */
            top += l->stride;
        }
        for (int32_t channel = done; channel < l->out_channels; channel += LANES) {
            const int32_t lanes = least(LANES, l->out_channels - channel);
            words += block_dots(l, count, columns, stride, inputs, words, lanes, sums);
            for (int32_t p = 0; p < count; p++) {
                uint8_t *const out = y + (first + p) * l->out_channels + channel;
                if (lanes == LANES && !logits) {
                    eight_codes(l, sums[p], l->factor, l->offset * inputs_sum[p], channel, out);
                    continue;
                }
                for (int32_t i = 0; i < lanes; i++) {
                    const int32_t sum = sums[p][i] * l->factor - l->offset * inputs_sum[p];
                    const int32_t value = accumulator(sum, l->shift, l->bias[channel + i]);
                    const float ratio = l->ratio[channel + i];
                    if (logits)
                        logits[channel + i] = (float)value * ratio;
                    else
                        out[i] = scaled(value, ratio, l->zero, l->max);
                }
            }
        }
    }
}

/* ---- depthwise convolutions */

/* Sums of one output pixel over the rows that its taps read, for LANES channels. */
INLINE void tap_dots(const uint8_t *const *rows, int32_t channel, int32_t pairs, const int16_t *weights, int32_t *sums)
{
    for (int32_t i = 0; i < LANES; i++) sums[i] = 0;
    for (int32_t i = 0; i < pairs; i++, weights += 2 * LANES)
        for (int32_t j = 0; j < LANES; j++)
            sums[j] += rows[2 * i][channel + j] * weights[2 * j] + rows[2 * i + 1][channel + j] * weights[2 * j + 1];
}

KERNEL void depthwise(const network_layer *l, const uint8_t *x, uint8_t *y, uint8_t *scratch)
{
    const int32_t channels = l->channels, taps = l->kernel * l->kernel, pairs = (taps + 1) / 2;
    int16_t *const weights = (int16_t *)(void *)scratch;
    uint8_t *const outside = scratch + (channels + LANES - 1) / LANES * pairs * LANES * 4;
    const uint8_t *rows[NETWORK_MOST_KERNEL * NETWORK_MOST_KERNEL + 1]; /* one more to make pairs */
    IF_VNNI({ if (vnni_depthwise(l, x, y)) return; })
    IF_CORTEX_M(if (IS_EVEN(channels)) {
        quad_depthwise(l, x, y, scratch);
        return;
    })
    unpack_weights(l, weights);
    fill_bytes(outside, (uint8_t)l->in_zero, channels);
    int32_t done = 0; /* channels */
    IF_AVX2(done = avx2_depthwise(l, x, y, weights, outside);)
    for (int32_t pixel = 0; pixel < l->out_size * l->out_size && done < channels; pixel++, y += channels) {
        tap_rows(l, x, pixel, outside, rows);
        for (int32_t channel = done; channel < channels; channel += LANES) {
            const int16_t *const block = weights + 2 * channel * pairs;
            int32_t sums[LANES];
            if (channel + LANES <= channels) {
                tap_dots(rows, channel, pairs, block, sums);
                eight_codes(l, sums, 1, 0, channel, y + channel);
                continue;
            }
            for (int32_t i = channel; i < channels; i++) { /* too few channels for a block */
                int32_t sum = 0;
                for (int32_t tap = 0; tap < taps; tap++)
                    sum += rows[tap][i] * block[tap / 2 * LANES * 2 + 2 * (i - channel) + tap % 2];
                y[i] = scaled(accumulator(sum, l->shift, l->bias[i]), l->ratio[i], l->zero, l->max);
            }
        }
    }
}

/* ---- operations without weights */

/* Raw pixels to codes, by a table of 256 for each channel. */
KERNEL void from_pixels(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, const uint8_t *table)
{
    for (int32_t i = 0; i < pixels; i++)
        for (int32_t c = 0; c < channels; c++, x++) *y++ = table[256 * c + *x];
}

KERNEL void dequantize(const uint8_t *x, float *logits, int32_t count, int32_t zero, float step)
{
    for (int32_t i = 0; i < count; i++) logits[i] = (float)(x[i] - zero) * step;
}

KERNEL void lookup(const uint8_t *x, uint8_t *y, int32_t count, const uint8_t *table, int32_t entries UNUSED)
{
    IF_VNNI({
        vnni_lookup(x, y, count, table, entries);
        return;
    })
    for (int32_t i = 0; i < count; i++) y[i] = table[x[i]];
}

KERNEL void add(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, float ratio_a, float ratio_b,
                       float offset, int32_t max)
{
    IF_VNNI({
        vnni_add(a, b, y, count, ratio_a, ratio_b, offset, max);
        return;
    })
#ifdef NETWORK_INTEGER
    const int is_small = ratio_a < 2.0f && ratio_b < 2.0f && offset > -512.0f && offset < 512.0f;
    const float whole = is_small ? 1099511627776.0f : 0.0f; /* 2^40: what is lost is less than 2^-30 */
    const int64_t by_a = (int64_t)(ratio_a * whole), by_b = (int64_t)(ratio_b * whole), from = (int64_t)(offset * whole);
#endif
    for (int32_t i = 0; i < count; i++) {
#ifdef NETWORK_INTEGER
        int32_t steps;
        if (is_small && whole_steps(by_a * a[i] + by_b * b[i] + from, 40, &steps)) {
            y[i] = clamped(steps, max);
            continue;
        }
#endif
        y[i] = code_of(fused(ratio_a, a[i], fused(ratio_b, b[i], offset)), 0, max);
    }
}

/* A map times one number for each channel. */
KERNEL void multiply(const uint8_t *x, const uint8_t *gate, uint8_t *y, int32_t pixels, int32_t channels,
                            int32_t zero_x, int32_t zero_gate, float ratio, int32_t zero, int32_t max)
{
    IF_VNNI({
        vnni_multiply(x, gate, y, pixels, channels, zero_x, zero_gate, ratio, zero, max);
        return;
    })
    for (int32_t i = 0; i < pixels; i++)
        for (int32_t c = 0; c < channels; c++, x++) {
            const int32_t product = (*x - zero_x) * (gate[c] - zero_gate);
#ifdef NETWORK_INTEGER
            int32_t steps;
            if (product_steps(product, ratio, &steps)) {
                *y++ = clamped(steps + zero, max);
                continue;
            }
#endif
            *y++ = code_of((float)product * ratio + (float)zero, 0, max);
        }
}

KERNEL void mean(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t zero_x, float ratio,
                        int32_t zero, int32_t max, uint8_t *scratch)
{
    int32_t *const sums = (int32_t *)(void *)scratch;
    IF_VNNI({
        vnni_mean(x, y, pixels, channels, zero_x, ratio, zero, max);
        return;
    })
    for (int32_t c = 0; c < channels; c++) sums[c] = -pixels * zero_x;
    for (int32_t i = 0; i < pixels; i++)
        for (int32_t c = 0; c < channels; c++) sums[c] += *x++;
    for (int32_t c = 0; c < channels; c++) y[c] = scaled(sums[c], ratio, zero, max);
}

/* 3 x 3 with stride 2; outside the map nothing. */
KERNEL void maxpool(const uint8_t *x, uint8_t *y, int32_t size, int32_t channels)
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

/* The largest of kernel x kernel pixels, every `stride` pixels, from `before` pixels outside; there is nothing. */
KERNEL void pool(const uint8_t *x, uint8_t *y, int32_t size, int32_t channels, int32_t kernel, int32_t stride,
                        int32_t before, int32_t out_size)
{
    for (int32_t i = 0; i < out_size; i++)
        for (int32_t j = 0; j < out_size; j++, y += channels) {
            const int32_t top = i * stride - before, left = j * stride - before;
            fill_bytes(y, 0, channels);
            for (int32_t row = top > 0 ? top : 0; row < least(size, top + kernel); row++)
                for (int32_t column = left > 0 ? left : 0; column < least(size, left + kernel); column++) {
                    const uint8_t *in = x + (row * size + column) * channels;
                    for (int32_t c = 0; c < channels; c++) y[c] = in[c] > y[c] ? in[c] : y[c];
                }
        }
}

/* Some channels of a map of `total`, from channel `first`: those of another map, whose codes a table translates. */
KERNEL void join(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t first, int32_t total,
                        const uint8_t *table)
{
    y += first;
    for (int32_t i = 0; i < pixels; i++, x += channels, y += total)
        for (int32_t c = 0; c < channels; c++) y[c] = table[x[c]];
}

/* `count` channels from channel `first`. */
KERNEL void slice_channels(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t first,
                                  int32_t count)
{
    for (int32_t i = 0; i < pixels; i++, x += channels, y += count) copy_bytes(y, x + first, count);
}

/* Channels of groups of `each` are dealt out in turn. */
KERNEL void shuffle_channels(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t groups,
                                    int32_t each)
{
    for (int32_t i = 0; i < pixels; i++, x += channels)
        for (int32_t c = 0; c < each; c++)
            for (int32_t g = 0; g < groups; g++) *y++ = x[g * each + c];
}

/* Every second pixel. */
KERNEL void subsample(const uint8_t *x, uint8_t *y, int32_t size, int32_t channels)
{
    for (int32_t i = 0; i < size; i += 2)
        for (int32_t j = 0; j < size; j += 2, y += channels) copy_bytes(y, x + (i * size + j) * channels, channels);
}

/* More pixels, all zero, on each side. */
KERNEL void pad_map(const uint8_t *x, uint8_t *y, int32_t size, int32_t channels, int32_t top, int32_t left,
                    int32_t out_size, int32_t zero)
{
    const int32_t before = left * channels, inside = size * channels, pitch = out_size * channels;
    for (int32_t row = -top; row < out_size - top; row++, y += pitch) {
        fill_bytes(y, (uint8_t)zero, pitch);
        if (row >= 0 && row < size) copy_bytes(y + before, x + row * inside, inside);
    }
}

/* A convolution of which each of `groups` groups of channels reads only its own, which are brought together first. Weights
 * of a group have so many words. */
KERNEL void grouped(const network_layer *l, int32_t groups, int32_t words, const uint8_t *x, uint8_t *y, uint8_t *scratch)
{
    const int32_t pixels = l->size * l->size, out_pixels = l->out_size * l->out_size;
    const int32_t channels = l->channels / groups, outputs = l->out_channels / groups;
    uint8_t *const in = scratch, *const out = in + (pixels * channels + 15) / 16 * 16;
    uint8_t *const rest = out + (out_pixels * outputs + 15) / 16 * 16;
    network_layer one = *l;
    one.channels = channels;
    one.out_channels = outputs;
    for (int32_t g = 0; g < groups; g++, one.weights += words, one.bias += outputs, one.ratio += outputs) {
        slice_channels(x, in, pixels, l->channels, g * channels, channels);
        layer(&one, in, out, 0, rest);
        for (int32_t i = 0; i < out_pixels; i++)
            copy_bytes(y + i * l->out_channels + g * outputs, out + i * outputs, outputs);
    }
}

/* More channels, all zero, before and after. */
KERNEL void pad_channels(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t before,
                                int32_t after, int32_t zero)
{
    for (int32_t i = 0; i < pixels; i++, x += channels, y += before + channels + after) {
        fill_bytes(y, (uint8_t)zero, before);
        copy_bytes(y + before, x, channels);
        fill_bytes(y + before + channels, (uint8_t)zero, after);
    }
}
