/* x86 with AVX2: eight channels, four inputs of each, in a vector. */

#ifdef NETWORK_AVX2
#ifndef __AVX2__ /* chosen when the program runs */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#endif

enum { AVX2_PIXELS = 4 }; /* output pixels computed together */
typedef uint32_t network_u32x8 __attribute__((vector_size(32)));

/* By pointer: functions that return such vectors are called otherwise with AVX and without. */
#define LOAD_EIGHT(FROM) ((network_u32x8)_mm256_loadu_si256((const __m256i *)(const void *)(FROM)))
DEFINE_CODES(avx2_codes_of, network_u32x8, LOAD_EIGHT)

/* Products of bytes, two summed to 16 bits: for codes so small that sums of a chunk fit. */
INLINE void narrow_dots(const int bits, const int count, const uint8_t *columns, int32_t stride, int32_t chunks_at_once,
                        network_words part, int32_t (*sums)[LANES])
{
    const int32_t chunk = 4 * chunk_steps(bits);
    __m256i sum[AVX2_PIXELS];
    for (int p = 0; p < count; p++) sum[p] = _mm256_setzero_si256();
    for (int32_t at = 0; at < stride;) {
        const int32_t end = least(stride, at + chunk * chunks_at_once);
        __m256i few[AVX2_PIXELS];
        for (int p = 0; p < count; p++) few[p] = _mm256_setzero_si256();
        for (; at < end; at += chunk) {
            UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
                const __m256i code = (__m256i)avx2_codes_of(bits, part, LANES, s, 0, 0x01010101u);
                UNROLL for (int p = 0; p < count; p++) {
                    const __m256i x = _mm256_set1_epi32((int32_t)load_word(columns + p * stride + at + 4 * s));
                    const __m256i product = bits < 8 ? _mm256_maddubs_epi16(x, code) : x;
                    few[p] = _mm256_add_epi16(few[p], product);
                }
            }
            part = next_words(bits, part, LANES);
        }
        for (int p = 0; p < count; p++)
            sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(few[p], _mm256_set1_epi16(1)));
    }
    for (int p = 0; p < count; p++) _mm256_storeu_si256((__m256i *)sums[p], sum[p]);
}

/* Products of 16 bits, for codes of any size. */
INLINE void wide_dots(const int bits, const int count, const uint8_t *columns, int32_t stride, network_words part,
                      int32_t (*sums)[LANES])
{
    const int32_t chunk = 4 * chunk_steps(bits);
    __m256i low[AVX2_PIXELS], high[AVX2_PIXELS]; /* of channels 0 to 3, and 4 to 7: two sums of each */
    for (int p = 0; p < count; p++) low[p] = high[p] = _mm256_setzero_si256();
    for (int32_t at = 0; at < stride; at += chunk) {
        UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
            const __m256i code = (__m256i)avx2_codes_of(bits, part, LANES, s, 0, 0x01010101u);
            const __m256i code_low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(code));
            const __m256i code_high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(code, 1));
            UNROLL for (int p = 0; p < count; p++) {
                const int32_t word = (int32_t)load_word(columns + p * stride + at + 4 * s);
                const __m256i x = _mm256_cvtepu8_epi16(_mm_set1_epi32(word));
                low[p] = _mm256_add_epi32(low[p], _mm256_madd_epi16(x, code_low));
                high[p] = _mm256_add_epi32(high[p], _mm256_madd_epi16(x, code_high));
            }
        }
        part = next_words(bits, part, LANES);
    }
    for (int p = 0; p < count; p++) {
        const __m256i pairs = _mm256_hadd_epi32(low[p], high[p]); /* channels 0 1 4 5 2 3 6 7 */
        _mm256_storeu_si256((__m256i *)sums[p], _mm256_permute4x64_epi64(pairs, 0xd8));
    }
}

INLINE void avx2_dots(const int bits, const int count, const network_layer *l, const uint8_t *columns, int32_t stride,
                      int32_t inputs, const uint32_t *words, int32_t (*sums)[LANES])
{
    const int32_t most = 2 * l->in_max * ((1 << bits) - 1); /* of two products */
    const int32_t chunks = 32767 / most / chunk_steps(bits); /* at least 1 for up to 4 bits */
    const network_words part = first_words(bits, words, LANES, (inputs + 3) / 4);
    if (bits <= 4 || (bits < 8 && chunks))
        narrow_dots(bits, count, columns, stride, chunks, part, sums);
    else
        wide_dots(bits, count, columns, stride, part, sums);
}

/* Sums of `count` columns (AVX2_PIXELS, or 1) for one block of channels; returns its words. */
KERNEL int32_t avx2_block(const network_layer *l, int32_t count, const uint8_t *columns, int32_t stride, int32_t inputs,
                          const uint32_t *words, int32_t (*sums)[LANES])
{
    switch (l->bits) {
#define CASE(BITS)                                                                   \
    case BITS:                                                                       \
        if (count == AVX2_PIXELS)                                                    \
            avx2_dots(BITS, AVX2_PIXELS, l, columns, stride, inputs, words, sums);   \
        else                                                                         \
            avx2_dots(BITS, 1, l, columns, stride, inputs, words, sums);             \
        return block_words(BITS, LANES, (inputs + 3) / 4);
        NETWORK_BITS(CASE)
#undef CASE
    }
    return 0;
}

/* As `make_column`. */
KERNEL int32_t avx2_column(const network_layer *l, const uint8_t *x, int32_t top, int32_t left, uint8_t *column,
                           int32_t stride, int32_t inputs)
{
    int32_t sum = 0, i = 0;
    gather(l, x, top, left, column);
    fill_bytes(column + inputs, 0, stride - inputs);
    __m256i parts = _mm256_setzero_si256();
    for (; i + 32 <= inputs; i += 32) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(column + i));
        parts = _mm256_add_epi64(parts, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
    }
    __m128i halves = _mm_add_epi64(_mm256_castsi256_si128(parts), _mm256_extracti128_si256(parts, 1));
    for (; i + 8 <= inputs; i += 8) {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(column + i));
        halves = _mm_add_epi64(halves, _mm_sad_epu8(bytes, _mm_setzero_si128()));
    }
    sum = _mm_cvtsi128_si32(_mm_add_epi64(halves, _mm_unpackhi_epi64(halves, halves)));
    for (; i < inputs; i++) sum += column[i];
    return sum;
}

/* As `eight_codes`, or, with `logits`, these. */
INLINE void avx2_results(const network_layer *l, __m256i sum, int32_t factor, int32_t subtracted, int32_t channel,
                         uint8_t *codes, float *logits)
{
    const float zero = (float)l->zero, max = (float)l->max;
    const __m256 big = _mm256_set1_ps(12582912.0f);
    if (factor != 1) sum = _mm256_add_epi32(sum, sum);
    sum = _mm256_slli_epi32(_mm256_sub_epi32(sum, _mm256_set1_epi32(subtracted)), l->shift);
    sum = _mm256_add_epi32(sum, _mm256_loadu_si256((const __m256i *)(const void *)(l->bias + channel)));
    __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(l->ratio + channel));
    if (logits) {
        _mm256_storeu_ps(logits + channel, value);
        return;
    }
    value = _mm256_add_ps(_mm256_sub_ps(_mm256_add_ps(value, big), big), _mm256_set1_ps(zero));
    value = _mm256_min_ps(_mm256_max_ps(value, _mm256_setzero_ps()), _mm256_set1_ps(max));
    const __m256i code = _mm256_cvttps_epi32(value);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)(void *)(codes + channel), _mm_packus_epi16(words, words));
}

/* As `layer`, for whole blocks of channels; returns how many channels these are. */
KERNEL int32_t avx2_layer(const network_layer *l, const uint8_t *x, uint8_t *y, float *logits, uint8_t *scratch)
{
    const int32_t inputs = l->kernel * l->kernel * l->channels, stride = padded_inputs(inputs, l->bits);
    const int32_t pixels = l->out_size * l->out_size, channels = l->out_channels / LANES * LANES;
    int32_t top = -l->pad, left = top;
    const int32_t right = left + l->out_size * l->stride;
    if (!channels || !NETWORK_HAS_AVX2) return 0;
    for (int32_t first = 0, count; first < pixels; first += count) {
        int32_t inputs_sum[AVX2_PIXELS], sums[AVX2_PIXELS][LANES];
        const uint32_t *words = l->weights;
        count = pixels - first < AVX2_PIXELS ? 1 : AVX2_PIXELS;
        for (int32_t p = 0; p < count; p++) {
            inputs_sum[p] = avx2_column(l, x, top, left, scratch + p * stride, stride, inputs);
            left += l->stride;
            if (left < right) continue;
            left = -l->pad; /* the next row */
            top += l->stride;
        }
        for (int32_t channel = 0; channel < channels; channel += LANES) {
            words += avx2_block(l, count, scratch, stride, inputs, words, sums);
            for (int32_t p = 0; p < count; p++) {
                const __m256i sum = _mm256_loadu_si256((const __m256i *)(const void *)sums[p]);
                uint8_t *const out = y + (first + p) * l->out_channels;
                avx2_results(l, sum, l->factor, l->offset * inputs_sum[p], channel, out, logits);
            }
        }
    }
    return channels;
}

/* As `depthwise`, for whole blocks of channels, whose weights are unpacked; returns how many channels these are. */
KERNEL int32_t avx2_depthwise(const network_layer *l, const uint8_t *x, uint8_t *y, const int16_t *weights,
                              const uint8_t *outside)
{
    const int32_t pairs = (l->kernel * l->kernel + 1) / 2, channels = l->channels / LANES * LANES;
    const uint8_t *rows[NETWORK_MOST_KERNEL * NETWORK_MOST_KERNEL + 1];
    if (!channels || !NETWORK_HAS_AVX2) return 0;
    for (int32_t pixel = 0; pixel < l->out_size * l->out_size; pixel++, y += l->channels) {
        const int16_t *w = weights;
        tap_rows(l, x, pixel, outside, rows);
        for (int32_t channel = 0; channel < channels; channel += LANES) {
            __m256i sum = _mm256_setzero_si256();
            for (int32_t i = 0; i < pairs; i++, w += 2 * LANES) {
                const __m128i first = _mm_loadl_epi64((const __m128i *)(const void *)(rows[2 * i] + channel));
                const __m128i second = _mm_loadl_epi64((const __m128i *)(const void *)(rows[2 * i + 1] + channel));
                const __m256i inputs = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second));
                const __m256i pair = _mm256_loadu_si256((const __m256i *)(const void *)w);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(inputs, pair));
            }
            avx2_results(l, sum, 1, 0, channel, y, 0);
        }
    }
    return channels;
}

#ifndef __AVX2__
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#endif
