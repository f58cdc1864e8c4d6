/* x86 with AVX512-VNNI, VBMI and VBMI2: eight channels, eight inputs of each, in a vector. Only this backend multiplies weights
 * themselves instead of codes: they fit into signed bytes, and then bias and nothing else is added. */

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

enum { VNNI_PIXELS = 8, VNNI_BLOCKS = 4 }; /* output pixels, and blocks of channels, computed together, at most */

/* What the codes of a layer's output are clamped to; read once, since bytes that are written might be anything. */
typedef struct {
    __m512 low, high;
    __m512i zero;
} vnni_range;

INLINE vnni_range vnni_range_of(const network_layer *l)
{
    const vnni_range range = {_mm512_set1_ps((float)-l->zero), _mm512_set1_ps((float)(l->max - l->zero)),
                              _mm512_set1_epi32(l->zero)};
    return range;
}

/* How codes become weights: their parts are rotated to where they belong and masked; then the offset is subtracted. */
typedef struct {
    __m512i rotate[4], mask[4]; /* of the parts of 8, 4, 2 and 1 bits */
    __m512i offset;
    vnni_range range;
} vnni_codes;

/* Whether signed bytes cannot hold weights, such as odd ones of 8 bits; or inputs of a kernel row are apart. */
INLINE int vnni_refuses(const network_layer *l) { return l->bits + l->factor - 1 + l->shift > 8 || DILATION(l) > 1; }

INLINE vnni_codes vnni_codes_of(const int bits, const network_layer *l)
{
    static const int width[4] = {8, 4, 2, 1};
    vnni_codes c;
    int low = l->shift + l->factor - 1; /* factor 2 is one place more */
    for (int i = 0; i < 4; i++) {
        const int from = i ? width[i] : 0; /* of the second step, in the word of the first */
        c.rotate[i] = _mm512_set1_epi64((int64_t)((uint64_t)(uint32_t)(from - low) << 32 | (uint32_t)-low));
        c.mask[i] = _mm512_set1_epi8((char)(((1 << width[i]) - 1) << low));
        if (bits & width[i]) low += width[i];
    }
    c.range = vnni_range_of(l);
    c.offset = _mm512_set1_epi8((char)(l->offset << l->shift));
    return c;
}

INLINE __m512i vnni_load(const uint32_t *words) /* of eight channels, each twice */
{
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m256i eight = _mm256_loadu_si256((const __m256i *)(const void *)words);
    return _mm512_permutexvar_epi32(twice, _mm512_castsi256_si512(eight));
}

/* Weights of steps s and s + 1: channel by channel, four inputs of the first step and four of the second. */
INLINE __m512i vnni_weights(const int bits, const vnni_codes *c, network_words part, const int s, const int steps)
{
    const __m512i pairs = _mm512_set_epi32(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    __m512i code = _mm512_setzero_si512();
    if (bits & 8) {
        const __mmask16 there = steps == 1 ? 0xff : 0xffff;
        const __m512i words = _mm512_permutexvar_epi32(pairs, _mm512_maskz_loadu_epi32(there, part.of8 + s * LANES));
        code = _mm512_and_si512(_mm512_rorv_epi32(words, c->rotate[0]), c->mask[0]);
    }
#define PART(BIT, I, WORDS)                                                                                  \
    if (bits & BIT) {                                                                                        \
        const int place = s % (8 / BIT) * BIT;                                                               \
        const __m512i amount = _mm512_add_epi32(c->rotate[I], _mm512_set1_epi32(place));                     \
        const __m512i words = _mm512_rorv_epi32(vnni_load(WORDS + s / (8 / BIT) * LANES), amount);           \
        code = _mm512_or_si512(code, _mm512_and_si512(words, c->mask[I]));                                   \
    }
    PART(4, 1, part.of4)
    PART(2, 2, part.of2)
    PART(1, 3, part.of1)
#undef PART
    return _mm512_sub_epi8(code, c->offset);
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
    _mm_mask_storeu_epi8(codes, there, _mm512_cvtepi32_epi8(code));
}

/* Steps s and s + 1, or s alone: sums of `count` output pixels and `blocks` blocks of channels. */
INLINE void vnni_step(const int bits, const int count, const int blocks, const vnni_codes *c, const uint8_t *const *x,
                      int32_t at, const network_words *part, const int s, const int steps, __m512i (*sum)[VNNI_BLOCKS])
{
    __m512i weights[VNNI_BLOCKS];
    UNROLL for (int b = 0; b < blocks; b++) weights[b] = vnni_weights(bits, c, part[b], s, steps);
    UNROLL for (int p = 0; p < count; p++) {
        int64_t eight = 0;
        memcpy(&eight, x[p] + at, steps == 1 ? 4 : 8);
        const __m512i inputs = _mm512_set1_epi64(eight);
        UNROLL for (int b = 0; b < blocks; b++) /* GCC 12 copies sums to and fro without this */
            __asm__("vpdpbusd %2, %1, %0" : "+v"(sum[p][b]) : "v"(inputs), "v"(weights[b]));
    }
}

/* `count` output pixels and `blocks` blocks of channels, over `runs` runs of `length` inputs each: those of pixel p
 * begin at from[p] + run * pitch. */
INLINE void vnni_block(const int bits, const int count, const int blocks, const network_layer *l, const vnni_codes *c,
                       const uint8_t *const *from, int32_t runs, int32_t pitch, int32_t length, const uint32_t *words,
                       int32_t channel, uint8_t *y, float *logits)
{
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    const int chunk = bits == 8 ? 2 : chunk_steps(bits);
    const int32_t steps = (l->kernel * l->kernel * l->channels + 3) / 4, block = block_words(bits, LANES, steps);
    const int32_t outputs = l->out_channels;
    network_words part[VNNI_BLOCKS];
    __m512i sum[VNNI_PIXELS][VNNI_BLOCKS];
    UNROLL for (int b = 0; b < blocks; b++) {
        const void *const bias = l->bias + channel + b * LANES;
        part[b] = first_words(bits, words + b * block, LANES, steps);
        sum[0][b] = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i *)bias));
        UNROLL for (int p = 1; p < count; p++) sum[p][b] = sum[0][b];
    }
    for (int32_t run = 0; run < runs; run++) {
        const uint8_t *x[VNNI_PIXELS];
        int32_t at = 0;
        UNROLL for (int p = 0; p < count; p++) x[p] = from[p] + run * pitch;
        for (; at + 4 * chunk <= length; at += 4 * chunk) {
            UNROLL for (int s = 0; s < chunk; s += 2) vnni_step(bits, count, blocks, c, x, at + 4 * s, part, s, 2, sum);
            UNROLL for (int b = 0; b < blocks; b++) {
                part[b] = next_words(bits, part[b], LANES);
                if (bits == 8) part[b].of8 += LANES;
            }
        }
        if (bits == 8 && at < length) vnni_step(bits, count, blocks, c, x, at, part, 0, 1, sum);
    }
    UNROLL for (int b = 0; b < blocks; b += 2) {
        const int32_t first = channel + b * LANES;
        const __mmask16 there = blocks > 1 ? 0xffff : 0xff;
        const __m512 ratio = _mm512_maskz_loadu_ps(there, l->ratio + first);
        UNROLL for (int p = 0; p < count; p++) {
            const __m512i other = blocks > 1 ? sum[p][b + 1] : sum[p][b];
            const __m512i s0 = _mm512_permutex2var_epi32(sum[p][b], even, other);
            const __m512i s1 = _mm512_permutex2var_epi32(sum[p][b], odd, other);
            vnni_results(c->range, _mm512_add_epi32(s0, s1), ratio, there, y + p * outputs + first,
                         logits ? logits + first : 0);
        }
    }
}

/* `count` output pixels, in all blocks of channels. */
INLINE void vnni_pixels(const int bits, const int count, const network_layer *l, const vnni_codes *c,
                        const uint8_t *const *from, int32_t runs, int32_t pitch, int32_t length, uint8_t *y,
                        float *logits)
{
    const int32_t block = block_words(bits, LANES, (l->kernel * l->kernel * l->channels + 3) / 4);
    const uint32_t *words = l->weights;
    int32_t channel = 0, left = l->out_channels / LANES;
    for (; count == 1 && left >= 4; left -= 4, channel += 4 * LANES, words += 4 * block)
        vnni_block(bits, 1, 4, l, c, from, runs, pitch, length, words, channel, y, logits);
    for (; left >= 2; left -= 2, channel += 2 * LANES, words += 2 * block)
        vnni_block(bits, count, 2, l, c, from, runs, pitch, length, words, channel, y, logits);
    if (left) vnni_block(bits, count, 1, l, c, from, runs, pitch, length, words, channel, y, logits);
}

INLINE __mmask16 vnni_there(int32_t left) { return (__mmask16)((1u << least(16, left)) - 1); }
INLINE __mmask64 vnni_first(int32_t count) { return count < 64 ? (1ull << count) - 1 : ~0ull; }

/* Copies, and zeroes what follows, up to 64 bytes in all. */
INLINE void vnni_copy(uint8_t *to, const uint8_t *from, int32_t count)
{
    for (int32_t i = 0; i < count; i += 64)
        _mm512_storeu_si512(to + i, _mm512_maskz_loadu_epi8(vnni_first(count - i), from + i));
}

/* Up to 64 bytes more: what is stored by a mask cannot be read before it has left the processor. */
INLINE void vnni_fill(uint8_t *to, uint8_t value, int32_t count)
{
    for (int32_t i = 0; i < count; i += 64) _mm512_storeu_si512(to + i, _mm512_set1_epi8((char)value));
}

/* Rows of a map, from `top` on, between columns of zero points; outside of the map zero points. Writes up to 64 bytes
 * more. */
KERNEL void vnni_rows(const network_layer *l, const uint8_t *x, int32_t top, int32_t count, uint8_t *to)
{
    const int32_t border = l->pad * l->channels, inside = l->size * l->channels, pitch = inside + 2 * border;
    for (int32_t row = top; row < top + count; row++, to += pitch) {
        if (row < 0 || row >= l->size) {
            vnni_fill(to, (uint8_t)l->in_zero, pitch);
            continue;
        }
        vnni_fill(to, (uint8_t)l->in_zero, border);
        vnni_copy(to + border, x + row * inside, inside);
        vnni_fill(to + border + inside, (uint8_t)l->in_zero, border);
    }
}

/* What `count` output pixels read, run after run without gaps, zero up to `stride`. Up to four runs of up to 16 bytes
 * are brought together in a register: byte i comes from byte order[i] of rows of 16. */
INLINE void vnni_columns(int32_t count, const uint8_t *const *from, int32_t runs, int32_t pitch, int32_t length,
                         int32_t stride, const uint8_t *order, uint8_t *columns)
{
    const int32_t inputs = runs * length;
    if (runs <= 4 && length <= 16) {
        const __mmask16 there = vnni_there(length);
        const __m512i places = _mm512_loadu_si512(order);
        const __mmask64 used = vnni_first(inputs);
        for (int32_t p = 0; p < count; p++) {
            const uint8_t *const x = from[p];
            __m512i rows = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(there, x));
            if (runs > 1) rows = _mm512_inserti32x4(rows, _mm_maskz_loadu_epi8(there, x + pitch), 1);
            if (runs > 2) rows = _mm512_inserti32x4(rows, _mm_maskz_loadu_epi8(there, x + 2 * pitch), 2);
            if (runs > 3) rows = _mm512_inserti32x4(rows, _mm_maskz_loadu_epi8(there, x + 3 * pitch), 3);
            _mm512_storeu_si512(columns + p * stride, _mm512_maskz_permutexvar_epi8(used, places, rows));
        }
        return;
    }
    for (int32_t p = 0; p < count; p++) {
        for (int32_t run = 0; run < runs; run++)
            vnni_copy(columns + p * stride + run * length, from[p] + run * pitch, length);
        vnni_fill(columns + p * stride + inputs, 0, stride - inputs);
    }
}

/* Rows of output pixels from rows of inputs that are `pitch` bytes apart. Runs of whole chunks are read where they
 * are. */
INLINE void vnni_band(const int bits, const network_layer *l, const uint8_t *x, int32_t pitch, int32_t rows, uint8_t *y,
                      float *logits)
{
    const vnni_codes c = vnni_codes_of(bits, l);
    const int32_t length = l->kernel * l->channels, inputs = l->kernel * length, step = l->stride * l->channels;
    const int32_t chunk = bits == 8 ? 8 : 4 * chunk_steps(bits), pixels = rows * l->out_size;
    const int32_t stride = bits == 8 ? (inputs + 3) / 4 * 4 : (inputs + chunk - 1) / chunk * chunk;
    const int is_direct = length % chunk == 0;
    const int32_t runs = is_direct ? l->kernel : 1, each = is_direct ? length : stride;
    uint8_t columns[VNNI_PIXELS * NETWORK_MOST_INPUTS + 64], order[64];
    for (int32_t i = 0; i < 64 && !is_direct; i++) order[i] = (uint8_t)(i / length * 16 + i % length);
    for (int32_t pixel = 0, count; pixel < pixels; pixel += count) {
        const uint8_t *from[VNNI_PIXELS];
        const int32_t left = pixels - pixel;
        count = left >= 8 || (left > 4 && pixels >= 8) ? 8 : left >= 4 || (left > 1 && pixels >= 4) ? 4 : 1;
        if (pixel + count > pixels) pixel = pixels - count; /* some once more */
        int32_t row = pixel / l->out_size, column = pixel % l->out_size;
        for (int32_t p = 0; p < count; p++) {
            from[p] = x + row * l->stride * pitch + column * step;
            if (++column == l->out_size) column = 0, row++;
        }
        if (!is_direct) {
            vnni_columns(count, from, l->kernel, pitch, length, stride, order, columns);
            for (int32_t p = 0; p < count; p++) from[p] = columns + p * stride;
        }
        uint8_t *const out = y + pixel * l->out_channels;
        if (count == 8)
            vnni_pixels(bits, 8, l, &c, from, runs, pitch, each, out, logits);
        else if (count == 4)
            vnni_pixels(bits, 4, l, &c, from, runs, pitch, each, out, logits);
        else
            vnni_pixels(bits, 1, l, &c, from, runs, pitch, each, out, logits);
    }
}

KERNEL void vnni_output(const network_layer *l, const uint8_t *x, int32_t pitch, int32_t rows, uint8_t *y, float *logits)
{
    switch (l->bits) {
#define CASE(BITS) \
    case BITS: vnni_band(BITS, l, x, pitch, rows, y, logits); break;
        NETWORK_BITS(CASE)
#undef CASE
    }
}

/* As `layer`, for whole blocks of channels; returns how many channels these are. */
KERNEL int32_t vnni_layer(const network_layer *l, const uint8_t *x, uint8_t *y, float *logits)
{
    const int32_t kernel = l->kernel, pitch = (l->size + 2 * l->pad) * l->channels;
    if (vnni_refuses(l)) return 0;
    if (kernel == 1) { /* without a border */
        vnni_output(l, x, pitch, l->out_size, y, logits);
        return l->out_channels / LANES * LANES;
    }
    uint8_t memory[NETWORK_MOST_ROWS + 64]; /* as many rows as fit, with borders */
    const int32_t most = (NETWORK_MOST_ROWS / pitch - kernel) / l->stride + 1;
    for (int32_t row = 0, rows; row < l->out_size; row += rows) {
        rows = least(most, l->out_size - row);
        vnni_rows(l, x, row * l->stride - l->pad, (rows - 1) * l->stride + kernel, memory);
        vnni_output(l, memory, pitch, rows, y + row * l->out_size * l->out_channels, logits);
    }
    return l->out_channels / LANES * LANES;
}
#endif
