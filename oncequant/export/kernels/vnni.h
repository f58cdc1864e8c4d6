/* x86 with AVX512-VNNI, VBMI and VBMI2: sixteen channels, four inputs of each, in a vector: those of two blocks of weights,
 * which are unpacked once for a layer. Only this backend multiplies weights themselves instead of codes: they fit into
 * signed bytes, and then bias and nothing else is added. */

#ifdef NETWORK_VNNI
#if !defined(__AVX512VNNI__) || !defined(__AVX512VBMI__) || !defined(__AVX512VBMI2__) /* else chosen when the program runs */
#define NETWORK_CHOOSES_VNNI
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target( \
    "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2")
#endif
#endif

enum { VNNI_PIXELS = 9, VNNI_VECTORS = 4 }; /* output pixels, and vectors of channels, computed together, at most */
enum { UNPACKED = 0 };                      /* in place of the bits of weights */

/* What the codes of an output are clamped to; read once, since bytes that are written might be anything. */
typedef struct {
    __m512 low, high;
    __m512i zero, zeros; /* in words of 32 and of 16 bits */
} vnni_range;

INLINE vnni_range vnni_range_of(int32_t zero, int32_t max)
{
    const vnni_range range = {_mm512_set1_ps((float)-zero), _mm512_set1_ps((float)(max - zero)),
                              _mm512_set1_epi32(zero), _mm512_set1_epi16((int16_t)zero)};
    return range;
}

/* How codes become weights: their parts are rotated to where they belong and masked; then the offset is subtracted. */
typedef struct {
    __m512i rotate[4], mask[4]; /* of the parts of 8, 4, 2 and 1 bits */
    __m512i offset;
} vnni_codes;

/* Whether signed bytes cannot hold weights, such as odd ones of 8 bits; or inputs of a kernel row are apart. */
INLINE int vnni_refuses(const network_layer *l) { return l->bits + l->factor - 1 + l->shift > 8 || DILATION(l) > 1; }

INLINE vnni_codes vnni_codes_of(const int bits, const network_layer *l)
{
    static const int width[4] = {8, 4, 2, 1};
    vnni_codes c;
    int low = l->shift + l->factor - 1; /* factor 2 is one place more */
    for (int i = 0; i < 4; i++) {
        c.rotate[i] = _mm512_set1_epi32(-low);
        c.mask[i] = _mm512_set1_epi8((char)(((1 << width[i]) - 1) << low));
        if (bits & width[i]) low += width[i];
    }
    c.offset = _mm512_set1_epi8((char)(l->offset << l->shift));
    return c;
}

/* Words of a block of eight channels and, `next` words behind, of another, if there is one. */
INLINE __m512i vnni_load(const uint32_t *words, int32_t next, const int blocks)
{
    const __m256i *const one = (const void *)words, *const other = (const void *)(words + next);
    const __m512i eight = _mm512_castsi256_si512(_mm256_loadu_si256(one));
    return blocks > 1 ? _mm512_inserti64x4(eight, _mm256_loadu_si256(other), 1) : eight;
}

/* Weights of a step: channel by channel, four inputs of each. */
INLINE __m512i vnni_weights(const int bits, const vnni_codes *c, network_words part, int32_t next, const int blocks,
                            const int s)
{
    __m512i code = _mm512_setzero_si512();
#define PART(BIT, I, WORDS)                                                                           \
    if (bits & BIT) {                                                                                 \
        const __m512i amount = _mm512_add_epi32(c->rotate[I], _mm512_set1_epi32(s % (8 / BIT) * BIT)); \
        const __m512i words = vnni_load(WORDS + s / (8 / BIT) * LANES, next, blocks);                 \
        code = _mm512_or_si512(code, _mm512_and_si512(_mm512_rorv_epi32(words, amount), c->mask[I])); \
    }
    PART(8, 0, part.of8)
    PART(4, 1, part.of4)
    PART(2, 2, part.of2)
    PART(1, 3, part.of1)
#undef PART
    return _mm512_sub_epi8(code, c->offset);
}

/* Weights of a last block alone: channel by channel, four inputs of one step and four of the next, zero behind the last. */
INLINE void vnni_unpack_last(const int bits, const vnni_codes *c, network_words part, int32_t steps, uint8_t *to)
{
    const __m512i pairs = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const int chunk = bits == 8 ? 2 : chunk_steps(bits);
    for (int32_t step = 0; step < steps; step += chunk, part = next_words(bits, part, LANES)) {
        UNROLL for (int s = 0; s < chunk; s += 2, to += 64) {
            const __m512i one = vnni_weights(bits, c, part, 0, 1, s), next = vnni_weights(bits, c, part, 0, 1, s + 1);
            const __mmask16 there = step + s + 1 < steps ? 0xffff : 0x5555;
            _mm512_storeu_si512(to, _mm512_maskz_permutex2var_epi32(there, one, pairs, next));
        }
        if (bits == 8) part.of8 += LANES;
    }
}

/* Weights of blocks of channels, two blocks after the other; room for `places` steps of each two, zero behind the last. */
INLINE void vnni_unpack_blocks(const int bits, const network_layer *l, const uint32_t *words, int32_t blocks,
                               int32_t places, uint8_t *to)
{
    const int chunk = chunk_steps(bits);
    const int32_t steps = (l->kernel * l->kernel * l->channels + 3) / 4, block = block_words(bits, LANES, steps);
    const vnni_codes c = vnni_codes_of(bits, l);
    for (; blocks > 0; blocks -= 2, words += 2 * block, to += 64 * places) {
        network_words part = first_words(bits, words, LANES, steps);
        if (blocks == 1) {
            vnni_unpack_last(bits, &c, part, steps, to);
            return;
        }
        for (int32_t step = 0; step < steps; step += chunk, part = next_words(bits, part, LANES))
            UNROLL for (int s = 0; s < chunk; s++)
                _mm512_storeu_si512(to + (step + s) * 64, vnni_weights(bits, &c, part, block, 2, s));
        for (int32_t step = steps; step < places; step++) _mm512_storeu_si512(to + step * 64, _mm512_setzero_si512());
    }
}

KERNEL void vnni_unpack(const network_layer *l, const uint32_t *words, int32_t blocks, int32_t places, uint8_t *to)
{
    switch (l->bits) {
#define CASE(BITS) \
    case BITS: vnni_unpack_blocks(BITS, l, words, blocks, places, to); break;
        NETWORK_BITS(CASE)
#undef CASE
    }
}

INLINE void vnni_store(uint8_t *to, __mmask16 there, __m128i codes)
{
    if (there == 0xffff) /* what is stored by a mask cannot be read before it has left the processor */
        _mm_storeu_si128((__m128i *)(void *)to, codes);
    else
        _mm_mask_storeu_epi8(to, there, codes);
}

/* Codes, or logits, of up to 16 channels, whose accumulators and ratios are given. */
INLINE void vnni_results(vnni_range range, __m512i accumulators, __m512 ratio, __mmask16 there, uint8_t *codes,
                         float *logits)
{
    __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(accumulators), ratio);
    if (logits) {
        _mm512_mask_storeu_ps(logits, there, value);
        return;
    }
    value = _mm512_min_ps(_mm512_max_ps(value, range.low), range.high);
    const __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(value), range.zero);
    vnni_store(codes, there, _mm512_cvtepi32_epi8(code));
}

/* The same codes of four pixels, which are `pitch` bytes apart: packing saturates, which is the lower end of clamping. */
INLINE void vnni_four_results(vnni_range range, const __m512i *accumulators, int32_t next, __m512 ratio, __mmask16 there,
                              uint8_t *codes, int32_t pitch)
{
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512i steps[4];
    UNROLL for (int p = 0; p < 4; p++) {
        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(accumulators[p * next]), ratio);
        steps[p] = _mm512_cvtps_epi32(_mm512_min_ps(value, range.high));
    }
    const __m512i two = _mm512_adds_epi16(_mm512_packs_epi32(steps[0], steps[1]), range.zeros);
    const __m512i more = _mm512_adds_epi16(_mm512_packs_epi32(steps[2], steps[3]), range.zeros);
    const __m512i all = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(two, more));
    vnni_store(codes, there, _mm512_castsi512_si128(all));
    vnni_store(codes + pitch, there, _mm512_extracti32x4_epi32(all, 1));
    vnni_store(codes + 2 * pitch, there, _mm512_extracti32x4_epi32(all, 2));
    vnni_store(codes + 3 * pitch, there, _mm512_extracti32x4_epi32(all, 3));
}

/* The same of eight channels, each of which has two sums side by side that are to be added. */
INLINE void vnni_four_halves(vnni_range range, const __m512i *accumulators, int32_t next, const float *ratios,
                             uint8_t *codes, int32_t pitch)
{
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    const __m512i order = _mm512_set_epi32(13, 9, 5, 1, 12, 8, 4, 0, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512 ratio = _mm512_broadcast_f32x8(_mm256_loadu_ps(ratios));
    __m512i steps[2];
    uint64_t all[4];
    UNROLL for (int p = 0; p < 2; p++) {
        const __m512i a = accumulators[2 * p * next], b = accumulators[(2 * p + 1) * next];
        const __m512i first = _mm512_permutex2var_epi32(a, even, b), second = _mm512_permutex2var_epi32(a, odd, b);
        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(first, second)), ratio);
        steps[p] = _mm512_cvtps_epi32(_mm512_min_ps(value, range.high));
    }
    const __m512i both = _mm512_adds_epi16(_mm512_packs_epi32(steps[0], steps[1]), range.zeros);
    const __m512i packed = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(both, both));
    _mm256_storeu_si256((__m256i *)(void *)all, _mm512_castsi512_si256(packed));
    UNROLL for (int p = 0; p < 4; p++) memcpy(codes + p * pitch, &all[p], 8);
}

#endif
