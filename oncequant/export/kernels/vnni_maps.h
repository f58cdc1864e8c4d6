#ifdef NETWORK_VNNI
/* ---- depthwise convolutions: four taps at once, of 16 channels */

/* Weights one after the other, tap by tap. */
KERNEL void vnni_unpack_taps(const network_layer *l, int32_t count, int8_t *to)
{
    static const int width[4] = {8, 4, 2, 1};
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const int32_t steps = (count + 3) / 4;
    const uint32_t *words = l->weights;
    for (int i = 0, low = l->shift + l->factor - 1; i < 4; i++) {
        if (!(l->bits & width[i])) continue;
        const int is_first = l->bits < 2 * width[i], is_last = !(l->bits & (width[i] - 1));
        const int together = 8 / width[i]; /* steps in a word */
        const int32_t all = (steps + together - 1) / together, next = 16 / together;
        const __m512i place = _mm512_and_si512(lane, _mm512_set1_epi32(together - 1));
        const __m512i word = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(i)); /* lane / together */
        const __m512i from = _mm512_mullo_epi32(place, _mm512_set1_epi32(width[i]));
        const __m512i rotate = _mm512_sub_epi32(from, _mm512_set1_epi32(low));
        const __m512i mask = _mm512_set1_epi8((char)(((1 << width[i]) - 1) << low));
        const __m512i offset = _mm512_set1_epi8((char)(is_last ? l->offset << l->shift : 0));
        for (int32_t at = 0; at < all; at += next) {
            const __mmask16 there = (__mmask16)((1 << least(16, all - at)) - 1);
            const __m512i some = _mm512_permutexvar_epi32(word, _mm512_maskz_loadu_epi32(there, words + at));
            int8_t *const codes = to + at * together * 4;
            __m512i code = _mm512_and_si512(_mm512_rorv_epi32(some, rotate), mask);
            if (!is_first) code = _mm512_or_si512(code, _mm512_loadu_si512(codes));
            _mm512_storeu_si512(codes, _mm512_sub_epi8(code, offset));
        }
        words += all;
        low += width[i];
    }
}

/* Four rows of up to 16 channels: channel by channel, a byte of each. */
INLINE __m512i vnni_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, __mmask16 there)
{
    const __m512i order = _mm512_set_epi32(0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a,
                                           0x39291909, 0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404,
                                           0x33231303, 0x32221202, 0x31211101, 0x30201000);
    __m512i rows = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(there, a));
    rows = _mm512_inserti32x4(rows, _mm_maskz_loadu_epi8(there, b), 1);
    rows = _mm512_inserti32x4(rows, _mm_maskz_loadu_epi8(there, c), 2);
    rows = _mm512_inserti32x4(rows, _mm_maskz_loadu_epi8(there, d), 3);
    return _mm512_permutexvar_epi8(order, rows);
}

/* Row by row of the kernel, four taps of a row after the other, channel by channel: from `vnni_unpack_taps`'s order. */
KERNEL void vnni_order_taps(const network_layer *l, const int8_t *flat, uint8_t *to)
{
    const int32_t channels = l->channels, kernel = l->kernel;
    const uint8_t *const w = (const uint8_t *)flat;
    for (int32_t row = 0; row < kernel; row++)
        for (int32_t first = 0; first < kernel; first += 4)
            for (int32_t channel = 0; channel < channels; channel += 16, to += 64) {
                const __mmask16 there = vnni_there(channels - channel);
                const int32_t taps = least(4, kernel - first);
                const uint8_t *tap[4];
                for (int32_t i = 0; i < 4; i++)
                    tap[i] = w + (row * kernel + first + least(i, taps - 1)) * channels + channel;
                const __m512i all = vnni_four(tap[0], tap[1], tap[2], tap[3], there);
                const __m512i used = _mm512_set1_epi32(taps == 4 ? -1 : (1 << 8 * taps) - 1);
                _mm512_storeu_si512(to, _mm512_and_si512(all, used));
            }
}

/* Output pixels, for up to 16 channels, from inputs that are together: row by row, `width` places a row. */
INLINE void vnni_taps(const network_layer *l, const int kernel, const uint8_t *together, int32_t width,
                      const uint8_t *taps, int32_t blocks, int32_t block, int32_t rows, uint8_t *y)
{
    const int fours = (kernel + 3) / 4;
    const int32_t next = 64 * 4 / l->stride;
    const __mmask16 there = vnni_there(l->channels - 16 * block);
    const __m512i bias = _mm512_maskz_loadu_epi32(there, l->bias + 16 * block);
    const __m512 ratio = _mm512_maskz_loadu_ps(there, l->ratio + 16 * block);
    const vnni_range range = vnni_range_of(l->zero, l->max);
    const int32_t out_size = l->out_size, channels = l->channels, stride = l->stride;
    __m512i weights[14]; /* of 7 x 7 taps */
    UNROLL for (int i = 0; i < kernel * fours; i++) weights[i] = _mm512_loadu_si512(taps + (i * blocks + block) * 64);
    for (int32_t row = 0; row < rows; row++)
        for (int32_t pixel = 0; pixel < out_size; pixel++) {
            const uint8_t *in = together + (row * stride * width + pixel) * 64;
            __m512i sum = bias;
            UNROLL for (int i = 0; i < kernel; i++, in += 64 * width)
                UNROLL for (int four = 0; four < fours; four++) {
                    const __m512i inputs = _mm512_loadu_si512(in + four * next);
                    sum = _mm512_dpbusd_epi32(sum, inputs, weights[i * fours + four]);
                }
            vnni_results(range, sum, ratio, there, y + (row * out_size + pixel) * channels + 16 * block, 0);
        }
}

/* As `depthwise`; returns whether it was computed. Of 16 channels at a time, each four inputs side by side are brought
 * together once, for all output pixels that read them. Inputs beyond a row meet weights of zero. */
KERNEL int vnni_depthwise(const network_layer *l, const uint8_t *x, uint8_t *y)
{
    const int32_t channels = l->channels, kernel = l->kernel, stride = l->stride, blocks = (channels + 15) / 16;
    const int32_t size = l->size + 2 * l->pad, pitch = size * channels;
    const int32_t width = l->out_size + (kernel - 1) / 4 * 4 / stride; /* places in a row that are needed */
    const int32_t fit = least(NETWORK_MOST_ROWS / pitch, NETWORK_MOST_TOGETHER / (64 * width));
    int8_t flat[NETWORK_MOST_TAPS];
    uint8_t taps[NETWORK_MOST_FOURS] __attribute__((aligned(64))); /* or each vector lies in two lines of the cache */
    uint8_t together[NETWORK_MOST_TOGETHER] __attribute__((aligned(64)));
    uint8_t memory[NETWORK_MOST_ROWS + 4 * NETWORK_MOST_CHANNELS + 64];
    if (vnni_refuses(l) || stride > 2 || kernel > 7) return 0; /* more taps than registers */
    vnni_unpack_taps(l, kernel * kernel * channels, flat);
    vnni_order_taps(l, flat, taps);
    for (int32_t row = 0, rows; row < l->out_size; row += rows, y += rows * l->out_size * channels) {
        rows = least((fit - kernel) / stride + 1, l->out_size - row);
        const int32_t in_rows = (rows - 1) * stride + kernel;
        vnni_rows(l, x, row * stride - l->pad, in_rows, memory);
        for (int32_t block = 0; block < blocks; block++) {
            const __mmask16 there = vnni_there(channels - 16 * block);
            for (int32_t i = 0; i < in_rows; i++) {
                const uint8_t *at = memory + i * pitch + 16 * block;
                __m512i four = vnni_four(at, at + channels, at + 2 * channels, at + 3 * channels, there);
                _mm512_storeu_si512(together + i * width * 64, four);
                at += 4 * channels;
                for (int32_t j = 1; j < width; j++) { /* one input leaves, the next comes; behind the last is room */
                    for (int32_t step = 0; step < stride; step++, at += channels) {
                        const __m512i next = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)at));
                        four = _mm512_shrdi_epi32(four, next, 8);
                    }
                    _mm512_storeu_si512(together + (i * width + j) * 64, four);
                }
            }
            switch (kernel) {
            case 3: vnni_taps(l, 3, together, width, taps, blocks, block, rows, y); break;
            case 5: vnni_taps(l, 5, together, width, taps, blocks, block, rows, y); break;
            case 7: vnni_taps(l, 7, together, width, taps, blocks, block, rows, y); break;
            default: vnni_taps(l, kernel, together, width, taps, blocks, block, rows, y);
            }
        }
    }
    return 1;
}

/* ---- operations without weights */

KERNEL void vnni_lookup(const uint8_t *x, uint8_t *y, int32_t count, const uint8_t *table, int32_t entries)
{
    __m512i part[4];
    for (int i = 0; i < 4; i++) {
        const int32_t left = entries - 64 * i;
        const __mmask64 there = left <= 0 ? 0 : left < 64 ? (1ull << left) - 1 : ~0ull;
        part[i] = _mm512_maskz_loadu_epi8(there, table + (left > 0 ? 64 * i : 0));
    }
    for (int32_t i = 0; i < count; i += 64) {
        const __mmask64 there = count - i < 64 ? (1ull << (count - i)) - 1 : ~0ull;
        const __m512i codes = _mm512_maskz_loadu_epi8(there, x + i);
        __m512i found = _mm512_permutex2var_epi8(part[0], codes, part[1]);
        if (entries > 128) {
            const __m512i high = _mm512_permutex2var_epi8(part[2], codes, part[3]);
            found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), found, high);
        }
        _mm512_mask_storeu_epi8(y + i, there, found);
    }
}

KERNEL void vnni_add(const uint8_t *a, const uint8_t *b, uint8_t *y, int32_t count, float ratio_a, float ratio_b,
                     float offset, int32_t max)
{
    for (int32_t i = 0; i < count; i += 16) {
        const __mmask16 there = vnni_there(count - i);
        const __m512 in_a = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, a + i)));
        const __m512 in_b = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, b + i)));
        __m512 value = _mm512_fmadd_ps(_mm512_set1_ps(ratio_b), in_b, _mm512_set1_ps(offset));
        value = _mm512_fmadd_ps(_mm512_set1_ps(ratio_a), in_a, value);
        value = _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), _mm512_set1_ps((float)max));
        _mm_mask_storeu_epi8(y + i, there, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value)));
    }
}

KERNEL void vnni_mean(const uint8_t *x, uint8_t *y, int32_t pixels, int32_t channels, int32_t zero_x, float ratio,
                      int32_t zero, int32_t max)
{
    const vnni_range range = vnni_range_of(zero, max);
    for (int32_t c = 0; c < channels; c += 16) {
        const __mmask16 there = vnni_there(channels - c);
        __m512i sum = _mm512_set1_epi32(-pixels * zero_x);
        for (int32_t i = c; i < pixels * channels; i += channels)
            sum = _mm512_add_epi32(sum, _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, x + i)));
        vnni_results(range, sum, _mm512_set1_ps(ratio), there, y + c, 0);
    }
}

/* A map times one number for each channel. */
KERNEL void vnni_multiply(const uint8_t *x, const uint8_t *gate, uint8_t *y, int32_t pixels, int32_t channels,
                          int32_t zero_x, int32_t zero_gate, float ratio, int32_t zero, int32_t max)
{
    for (int32_t c = 0; c < channels; c += 16) {
        const __mmask16 there = vnni_there(channels - c);
        const __m512i gates = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, gate + c));
        const __m512i factor = _mm512_sub_epi32(gates, _mm512_set1_epi32(zero_gate));
        for (int32_t i = c; i < pixels * channels; i += channels) {
            const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, x + i));
            const __m512i product = _mm512_mullo_epi32(_mm512_sub_epi32(codes, _mm512_set1_epi32(zero_x)), factor);
            __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(product), _mm512_set1_ps(ratio));
            value = _mm512_add_ps(value, _mm512_set1_ps((float)zero)); /* before it is rounded, as in the simulator */
            value = _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), _mm512_set1_ps((float)max));
            _mm_mask_storeu_epi8(y + i, there, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value)));
        }
    }
}

#ifdef NETWORK_CHOOSES_VNNI
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#endif
