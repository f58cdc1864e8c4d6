/* Convolutions and linear layers by AVX512-VNNI. Compiled as vnni.h and vnni_maps.h, between which this is. */

#ifdef NETWORK_VNNI
/* Step s of a chunk: sums of `count` output pixels and `blocks` blocks of channels, whose words are `next` apart. */
INLINE void vnni_step(const int bits, const int count, const int blocks, const vnni_codes *c, const uint8_t *const *x,
                      int32_t at, network_words part, int32_t next, const int s, __m512i (*sum)[VNNI_VECTORS])
{
    const int vectors = (blocks + 1) / 2, is_half = bits == UNPACKED && blocks == 1;
    __m512i weights[VNNI_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
        weights[v] = bits == UNPACKED ? _mm512_loadu_si512(part.of8) : vnni_weights(bits, c, part, next, blocks, s);
        part.of8 += 2 * next, part.of4 += 2 * next, part.of2 += 2 * next, part.of1 += 2 * next;
    }
    UNROLL for (int p = 0; p < count; p++) {
        __m512i inputs;
        if (is_half) { /* two steps of eight channels */
            int64_t eight;
            memcpy(&eight, x[p] + at, 8);
            inputs = _mm512_set1_epi64(eight);
        } else {
            inputs = _mm512_set1_epi32((int32_t)load_word(x[p] + at + 4 * s));
        }
        UNROLL for (int v = 0; v < vectors; v++) /* GCC 12 copies sums to and fro without this */
            __asm__("vpdpbusd %2, %1, %0" : "+v"(sum[p][v]) : "v"(inputs), "v"(weights[v]));
    }
}

/* Where inputs of some output pixels are: `runs` runs of `length` each, those of pixel p from from[p] + run * pitch on. */
typedef struct {
    const uint8_t *from[VNNI_PIXELS];
    int32_t runs, pitch, length;
} vnni_inputs;

/* `count` output pixels and `blocks` blocks of channels, from `channel` on. A block alone, unpacked, has half of the
 * channels of a vector and two steps in it. */
INLINE void vnni_block(const int bits, const int count, const int blocks, const network_layer *l, const vnni_inputs *in,
                       const uint32_t *words, int32_t channel, uint8_t *y, float *logits)
{
    const int vectors = (blocks + 1) / 2, is_half = bits == UNPACKED && blocks == 1;
    const int vectors_each = bits == UNPACKED ? 1 : bits == 8 ? 2 : chunk_steps(bits); /* of weights in a chunk */
    const int chunk = is_half ? 2 : vectors_each;                                      /* steps */
    const __mmask16 there = blocks > 1 ? 0xffff : 0xff;
    const int32_t steps = (l->kernel * l->kernel * l->channels + 3) / 4, outputs = l->out_channels;
    const int32_t block = bits == UNPACKED ? LANES * steps : block_words(bits, LANES, steps);
    const vnni_codes c = vnni_codes_of(bits, l);
    const vnni_range range = vnni_range_of(l->zero, l->max);
    network_words part = first_words(bits, words, LANES, steps);
    __m512i sum[VNNI_PIXELS][VNNI_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) {
        sum[0][v] = _mm512_maskz_loadu_epi32(there, l->bias + channel + 16 * v);
        if (is_half) sum[0][v] = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(sum[0][v]));
        UNROLL for (int p = 1; p < count; p++) sum[p][v] = sum[0][v];
    }
    for (int32_t run = 0; run < in->runs; run++) {
        const uint8_t *x[VNNI_PIXELS];
        int32_t at = 0;
        UNROLL for (int p = 0; p < count; p++) x[p] = in->from[p] + run * in->pitch;
        for (; at + 4 * chunk <= in->length; at += 4 * chunk) {
            UNROLL for (int s = 0; s < vectors_each; s++)
                vnni_step(bits, count, blocks, &c, x, at, part, block, s, sum);
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
            if (is_half)
                vnni_four_halves(range, &sum[p][v], VNNI_VECTORS, l->ratio + first, y + p * outputs + first, outputs);
            else
                vnni_four_results(range, &sum[p][v], VNNI_VECTORS, ratio, there, y + p * outputs + first, outputs);
        if (p < count && is_half) {
            const __m512i both = _mm512_add_epi32(sum[p][v], _mm512_srli_epi64(sum[p][v], 32));
            sum[p][v] = _mm512_castsi256_si512(_mm512_cvtepi64_epi32(both));
        }
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
    const int32_t chunk = bits == UNPACKED ? 4 + 4 * (blocks % 2) : bits == 8 ? 8 : 4 * chunk_steps(bits);
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
