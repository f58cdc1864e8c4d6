#ifdef NETWORK_AVX2
/* Dot products with AVX2: eight channels, four inputs of each, in a vector. */

enum { COLUMNS = 4 };
typedef uint8_t network_column;
typedef uint32_t network_u32x8 __attribute__((vector_size(32)));

INLINE network_u32x8 load_words(const uint32_t *from)
{
    network_u32x8 words;
    memcpy(&words, from, sizeof words);
    return words;
}
DEFINE_CODES(codes_of_channels, network_u32x8, load_words)

/* Products of bytes, two summed to 16 bits: for codes so small that sums of a chunk fit. */
INLINE void narrow_dots(const int bits, const int count, const uint8_t *columns, int32_t stride, int32_t chunks_at_once,
                        network_words part, int32_t (*sums)[LANES])
{
    const int32_t chunk = 4 * chunk_steps(bits);
    __m256i sum[4];
    for (int p = 0; p < count; p++) sum[p] = _mm256_setzero_si256();
    for (int32_t at = 0; at < stride;) {
        const int32_t end = least(stride, at + chunk * chunks_at_once);
        __m256i few[4];
        for (int p = 0; p < count; p++) few[p] = _mm256_setzero_si256();
        for (; at < end; at += chunk) {
            UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
                const __m256i code = (__m256i)codes_of_channels(bits, part, LANES, s, 0, 0x01010101u);
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
    __m256i low[4], high[4]; /* of channels 0 to 3, and 4 to 7: two sums of each */
    for (int p = 0; p < count; p++) low[p] = high[p] = _mm256_setzero_si256();
    for (int32_t at = 0; at < stride; at += chunk) {
        UNROLL for (int s = 0; s < chunk_steps(bits); s++) {
            const __m256i code = (__m256i)codes_of_channels(bits, part, LANES, s, 0, 0x01010101u);
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

INLINE void dots(const int bits, const int count, const network_layer *l, const network_column *columns, int32_t stride,
                 int32_t inputs, const uint32_t *words, int32_t lanes, int32_t (*sums)[LANES])
{
    const int32_t most = 2 * l->in_max * ((1 << bits) - 1); /* of two products */
    const int32_t chunks = 32767 / most / chunk_steps(bits); /* at least 1 for up to 4 bits */
    const network_words part = first_words(bits, words, LANES, (inputs + 3) / 4);
    if (lanes < LANES)
        leftover_dots(bits, count, columns, stride, inputs, words, lanes, sums);
    else if (bits <= 4 || (bits < 8 && chunks))
        narrow_dots(bits, count, columns, stride, chunks, part, sums);
    else
        wide_dots(bits, count, columns, stride, part, sums);
}
#endif
