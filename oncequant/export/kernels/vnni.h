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

/* Weights of blocks of channels, two blocks after the other; room for `places` steps of each two, zero behind the last. */
INLINE void vnni_unpack_blocks(const int bits, const network_layer *l, const uint32_t *words, int32_t blocks,
                               int32_t places, uint8_t *to)
{
    const int chunk = chunk_steps(bits);
    const int32_t steps = (l->kernel * l->kernel * l->channels + 3) / 4, block = block_words(bits, LANES, steps);
    const vnni_codes c = vnni_codes_of(bits, l);
    for (; blocks > 0; blocks -= 2, words += 2 * block, to += 64 * places) {
        network_words part = first_words(bits, words, LANES, steps);
        const int32_t next = blocks > 1 ? block : 0; /* a last one twice */
        for (int32_t step = 0; step < steps; step += chunk, part = next_words(bits, part, LANES))
            UNROLL for (int s = 0; s < chunk; s++)
                _mm512_storeu_si512(to + (step + s) * 64, vnni_weights(bits, &c, part, next, 2, s));
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

/* Step s of a chunk: sums of `count` output pixels and `blocks` blocks of channels, whose words are `next` apart. */
INLINE void vnni_step(const int bits, const int count, const int blocks, const vnni_codes *c, const uint8_t *const *x,
                      int32_t at, network_words part, int32_t next, const int s, __m512i (*sum)[VNNI_VECTORS])
{
    const int vectors = (blocks + 1) / 2;
    __m512i weights[VNNI_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
        weights[v] = bits == UNPACKED ? _mm512_loadu_si512(part.of8) : vnni_weights(bits, c, part, next, blocks, s);
        part.of8 += 2 * next, part.of4 += 2 * next, part.of2 += 2 * next, part.of1 += 2 * next;
    }
    UNROLL for (int p = 0; p < count; p++) {
        const __m512i inputs = _mm512_set1_epi32((int32_t)load_word(x[p] + at + 4 * s));
        UNROLL for (int v = 0; v < vectors; v++) /* GCC 12 copies sums to and fro without this */
            __asm__("vpdpbusd %2, %1, %0" : "+v"(sum[p][v]) : "v"(inputs), "v"(weights[v]));
    }
}

/* Where inputs of some output pixels are: `runs` runs of `length` each, those of pixel p from from[p] + run * pitch on. */
typedef struct {
    const uint8_t *from[VNNI_PIXELS];
    int32_t runs, pitch, length;
} vnni_inputs;

/* `count` output pixels and `blocks` blocks of channels, from `channel` on. */
INLINE void vnni_block(const int bits, const int count, const int blocks, const network_layer *l, const vnni_inputs *in,
                       const uint32_t *words, int32_t channel, uint8_t *y, float *logits)
{
    const int chunk = bits == UNPACKED ? 1 : bits == 8 ? 2 : chunk_steps(bits), vectors = (blocks + 1) / 2;
    const __mmask16 there = blocks > 1 ? 0xffff : 0xff;
    const int32_t steps = (l->kernel * l->kernel * l->channels + 3) / 4, outputs = l->out_channels;
    const int32_t block = bits == UNPACKED ? LANES * steps : block_words(bits, LANES, steps);
    const vnni_codes c = vnni_codes_of(bits, l);
    const vnni_range range = vnni_range_of(l->zero, l->max);
    network_words part = first_words(bits, words, LANES, steps);
    __m512i sum[VNNI_PIXELS][VNNI_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
        sum[0][v] = _mm512_maskz_loadu_epi32(there, l->bias + channel + 16 * v);
        UNROLL for (int p = 1; p < count; p++) sum[p][v] = sum[0][v];
    }
    for (int32_t run = 0; run < in->runs; run++) {
        const uint8_t *x[VNNI_PIXELS];
        int32_t at = 0;
        UNROLL for (int p = 0; p < count; p++) x[p] = in->from[p] + run * in->pitch;
        for (; at + 4 * chunk <= in->length; at += 4 * chunk) {
            UNROLL for (int s = 0; s < chunk; s++) vnni_step(bits, count, blocks, &c, x, at, part, block, s, sum);
            part = next_words(bits, part, LANES);
            if (bits == 8) part.of8 += LANES;
            if (bits == UNPACKED) part.of8 += LANES;
        }
        if (bits == 8 && at < in->length) vnni_step(bits, count, blocks, &c, x, at, part, block, 0, sum);
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        const int32_t first = channel + 16 * v;
        const __m512 ratio = _mm512_maskz_loadu_ps(there, l->ratio + first);
        int p = 0;
        UNROLL for (; p + 4 <= count; p += 4)
            vnni_four_results(range, &sum[p][v], VNNI_VECTORS, ratio, there, y + p * outputs + first, outputs);
        if (p < count)
            vnni_results(range, sum[p][v], ratio, there, y + p * outputs + first, logits ? logits + first : 0);
    }
}

/* `count` output pixels, in some blocks of channels. */
INLINE void vnni_pixels(const int bits, const int count, const network_layer *l, const vnni_inputs *in,
                        const uint32_t *words, int32_t channel, int32_t left, uint8_t *y, float *logits)
{
    const int32_t steps = (l->kernel * l->kernel * l->channels + 3) / 4;
    const int32_t block = bits == UNPACKED ? LANES * steps : block_words(bits, LANES, steps);
#define BLOCKS(COUNT)                                                                      \
    for (; left >= COUNT; left -= COUNT, channel += COUNT * LANES, words += COUNT * block) \
        vnni_block(bits, count, COUNT, l, in, words, channel, y, logits);
    if (bits != UNPACKED) BLOCKS(8)
    BLOCKS(4)
    BLOCKS(2)
    BLOCKS(1)
#undef BLOCKS
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

/* Where bytes of runs of `length`, up to 16, without gaps are in rows of 16. */
INLINE void vnni_order(int32_t length, uint8_t *order)
{
    for (int32_t i = 0, row = 0, byte = 0; i < 64; i++) {
        order[i] = (uint8_t)(row + byte);
        if (++byte == length) byte = 0, row += 16;
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

/* Rows of output pixels, in some blocks of channels, from rows of inputs that are `pitch` bytes apart. Runs of whole chunks
 * are read where they are. Weights are unpacked, but for one pixel, which needs each once. */
INLINE void vnni_band(const int bits, const network_layer *l, const uint8_t *x, int32_t pitch, int32_t rows,
                      const uint32_t *words, int32_t channel, int32_t blocks, uint8_t *y, float *logits)
{
    const int32_t length = l->kernel * l->channels, inputs = l->kernel * length, step = l->stride * l->channels;
    const int32_t chunk = bits == UNPACKED ? 4 : bits == 8 ? 8 : 4 * chunk_steps(bits);
    const int32_t least_chunk = bits == 8 ? 4 : chunk, stride = (inputs + least_chunk - 1) / least_chunk * least_chunk;
    const int32_t out_size = l->out_size, pixels = rows * out_size, down = l->stride * pitch;
    const int is_direct = length % chunk == 0;
    vnni_inputs in = {{0}, is_direct ? l->kernel : 1, pitch, is_direct ? length : stride};
    uint8_t columns[VNNI_PIXELS * NETWORK_MOST_INPUTS + 64], order[64];
    int32_t row = 0, column = 0;
    if (!is_direct) vnni_order(length, order);
    for (int32_t pixel = 0, count; pixel < pixels; pixel += count) {
        const int32_t left = pixels - pixel;
        count = left >= 8 || (left > 4 && pixels >= 8) ? 8 : left >= 4 || (left > 1 && pixels >= 4) ? 4 : 1;
        if (pixels == 9) count = 9;
        if (bits != UNPACKED) count = 1;
        if (pixel + count > pixels) { /* some once more */
            pixel = pixels - count;
            row = pixel / out_size, column = pixel % out_size;
        }
        for (int32_t p = 0; p < count; p++) {
            in.from[p] = x + row * down + column * step;
            if (++column == out_size) column = 0, row++;
        }
        if (!is_direct) {
            vnni_columns(count, in.from, l->kernel, pitch, length, stride, order, columns);
            for (int32_t p = 0; p < count; p++) in.from[p] = columns + p * stride;
        }
        uint8_t *const out = y + pixel * l->out_channels;
        if (bits != UNPACKED || count == 1)
            vnni_pixels(bits, 1, l, &in, words, channel, blocks, out, logits);
        else if (count == 8)
            vnni_pixels(bits, 8, l, &in, words, channel, blocks, out, logits);
        else if (count == 9)
            vnni_pixels(bits, 9, l, &in, words, channel, blocks, out, logits);
        else
            vnni_pixels(bits, 4, l, &in, words, channel, blocks, out, logits);
    }
}

KERNEL void vnni_rows_out(const network_layer *l, const uint8_t *x, int32_t pitch, int32_t rows, const uint8_t *weights,
                          int32_t channel, int32_t blocks, uint8_t *y)
{
    vnni_band(UNPACKED, l, x, pitch, rows, (const uint32_t *)(const void *)weights, channel, blocks, y, 0);
}

KERNEL void vnni_one_pixel(const network_layer *l, const uint8_t *x, int32_t pitch, uint8_t *y, float *logits)
{
    switch (l->bits) {
#define CASE(BITS) \
    case BITS: vnni_band(BITS, l, x, pitch, 1, l->weights, 0, l->out_channels / LANES, y, logits); break;
        NETWORK_BITS(CASE)
#undef CASE
    }
}

/* As `layer`, for whole blocks of channels; returns how many channels these are. */
KERNEL int32_t vnni_layer(const network_layer *l, const uint8_t *x, uint8_t *y, float *logits)
{
    const int32_t kernel = l->kernel, size = l->out_size, pitch = (l->size + 2 * l->pad) * l->channels;
    const int32_t steps = (kernel * kernel * l->channels + 3) / 4, all = l->out_channels / LANES;
    uint8_t weights[NETWORK_MOST_UNPACKED + 512] __attribute__((aligned(64))); /* unpacking writes up to 7 steps more */
    const int32_t together = NETWORK_MOST_UNPACKED / (8 * LANES * steps) * 2; /* blocks */
    uint8_t memory[NETWORK_MOST_ROWS + 64]; /* as many rows as fit, with borders */
    const int32_t most = kernel == 1 ? size : least(size, (NETWORK_MOST_ROWS / pitch - kernel) / l->stride + 1);
    if (vnni_refuses(l)) return 0;
    for (int32_t block = 0, blocks; block < all; block += blocks) {
        blocks = size == 1 ? all : least(together, all - block);
        if (size > 1) vnni_unpack(l, l->weights + words_before(l, block * LANES), blocks, steps, weights);
        for (int32_t row = 0, rows; row < size; row += rows) {
            const uint8_t *in = kernel == 1 ? x + row * l->stride * pitch : memory;
            uint8_t *const out = y + row * size * l->out_channels;
            rows = least(most, size - row);
            if (kernel > 1 && (block == 0 || most < size))
                vnni_rows(l, x, row * l->stride - l->pad, (rows - 1) * l->stride + kernel, memory);
            if (size > 1)
                vnni_rows_out(l, in, pitch, rows, weights, block * LANES, blocks, out);
            else
                vnni_one_pixel(l, in, pitch, out, logits);
        }
    }
    return l->out_channels / LANES * LANES;
}
#endif
