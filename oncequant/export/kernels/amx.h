/* x86 with AMX: convolutions in tiles of 16 output pixels, 64 inputs and 16 channels, where there are so many. Weights are
 * unpacked once for a layer. Compiled as vnni_layers.h and vnni_maps.h, between which this is. */

#ifdef NETWORK_AMX
enum { AMX_PIXELS = 16, AMX_INPUTS = 64, AMX_CHANNELS = 16, AMX_TILE = 1024 };

/* Not the intrinsics: those of GCC 12 do not say that they read memory, and what was stored there may be left out. */
#define TILE_LOAD(TILE, FROM, STRIDE) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #TILE : : "r"(FROM), "r"((int64_t)(STRIDE)) : "memory")
#define TILE_STORE(TILE, TO, STRIDE) \
    __asm__ volatile("tilestored %%tmm" #TILE ", (%0,%1,1)" : : "r"(TO), "r"((int64_t)(STRIDE)) : "memory")
#define TILE_DOTS(SUM, INPUTS, WEIGHTS) __asm__ volatile("tdpbusd %tmm" #WEIGHTS ", %tmm" #INPUTS ", %tmm" #SUM)

/* Tiles 0 to 3 are sums, 4 is inputs of 16 pixels, `width` of each, 5 to 7 are weights of 16 channels. Other code in the
 * process may use tiles, so they are set up for each layer. */
INLINE void amx_begin(int32_t width)
{
    struct {
        uint8_t palette, rest[15];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {1, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    config.bytes[4] = (uint16_t)width;
    config.rows[5] = config.rows[6] = config.rows[7] = (uint8_t)(width / 4);
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

/* How many inputs of a run are a tile: the most that the run can be divided into, or 0 if these are few. */
INLINE int32_t amx_width(int32_t length)
{
    int32_t width = AMX_INPUTS;
    while (width >= AMX_INPUTS / 2 && length % width) width -= 4;
    return width >= AMX_INPUTS / 2 ? width : 0;
}

/* Where the inputs of 16 output pixels are: `runs` runs of `length` inputs, `pitch` bytes apart; those of the next pixel
 * `step` bytes further. A tile has `width` of them. */
typedef struct {
    int32_t runs, length, pitch, step, width;
} amx_inputs;

/* Sums of 16 output pixels and `blocks` blocks of channels, whose weights are `next` bytes apart. */
INLINE void amx_block(const int blocks, const network_layer *l, const uint8_t *x, const amx_inputs *in,
                      const uint8_t *weights, int32_t next, int32_t channel, int32_t *sums)
{
    const int32_t width = in->width, length = in->length, step = in->step, tile = width * AMX_CHANNELS;
    const int32_t *bias = l->bias + channel; /* the same row 16 times */
    __asm__("" : "+r"(bias)); /* GCC 12 warns of layers that have fewer channels, which never come here */
    TILE_LOAD(0, bias, 0);
    if (blocks > 1) TILE_LOAD(1, bias + 16, 0);
    if (blocks > 2) TILE_LOAD(2, bias + 32, 0);
    if (blocks > 3) TILE_LOAD(3, bias + 48, 0);
    for (int32_t run = 0; run < in->runs; run++, x += in->pitch)
        for (int32_t i = 0; i < length; i += width, weights += tile) {
            TILE_LOAD(4, x + i, step);
            TILE_LOAD(5, weights, 64);
            TILE_DOTS(0, 4, 5);
            if (blocks > 1) {
                TILE_LOAD(6, weights + next, 64);
                TILE_DOTS(1, 4, 6);
            }
            if (blocks > 2) {
                TILE_LOAD(7, weights + 2 * next, 64);
                TILE_DOTS(2, 4, 7);
            }
            if (blocks > 3) {
                TILE_LOAD(5, weights + 3 * next, 64);
                TILE_DOTS(3, 4, 5);
            }
        }
    TILE_STORE(0, sums, 64);
    if (blocks > 1) TILE_STORE(1, sums + 256, 64);
    if (blocks > 2) TILE_STORE(2, sums + 512, 64);
    if (blocks > 3) TILE_STORE(3, sums + 768, 64);
}

/* 16 output pixels, in all channels. */
KERNEL void amx_pixels(const network_layer *l, const uint8_t *x, const amx_inputs *in, const uint8_t *weights, uint8_t *y)
{
    const vnni_range range = vnni_range_of(l->zero, l->max);
    const int32_t channels = l->out_channels, inputs = l->kernel * l->kernel * l->channels;
    const int32_t next = (inputs + AMX_INPUTS - 1) / AMX_INPUTS * AMX_TILE; /* from block to block */
    int32_t sums[4 * 256] __attribute__((aligned(64)));
    for (int32_t channel = 0, blocks; channel < channels; channel += blocks * AMX_CHANNELS) {
        const uint8_t *const from = weights + channel / AMX_CHANNELS * next;
        blocks = least(4, (channels - channel) / AMX_CHANNELS);
        switch (blocks) {
        case 1: amx_block(1, l, x, in, from, next, channel, sums); break;
        case 2: amx_block(2, l, x, in, from, next, channel, sums); break;
        case 3: amx_block(3, l, x, in, from, next, channel, sums); break;
        default: amx_block(4, l, x, in, from, next, channel, sums);
        }
        for (int32_t b = 0; b < blocks; b++) {
            const int32_t first = channel + b * AMX_CHANNELS;
            const __m512 ratio = _mm512_loadu_ps(l->ratio + first);
            for (int32_t p = 0; p < AMX_PIXELS; p += 4) {
                __m512i four[4];
                UNROLL for (int i = 0; i < 4; i++) four[i] = _mm512_loadu_si512(sums + b * 256 + (p + i) * 16);
                vnni_four_results(range, four, 1, ratio, 0xffff, y + p * channels + first, channels);
            }
        }
    }
}

/* Rows of output pixels, at least 16 in all, from rows of inputs that are `pitch` bytes apart: read where they are, in
 * tiles of `width` inputs, or, if that is 0, brought together. */
KERNEL void amx_output(const network_layer *l, const uint8_t *x, int32_t pitch, int32_t rows, int32_t width,
                       const uint8_t *weights, uint8_t *y)
{
    const int32_t length = l->kernel * l->channels, step = l->stride * l->channels, pixels = rows * l->out_size;
    const int32_t stride = (l->kernel * length + AMX_INPUTS - 1) / AMX_INPUTS * AMX_INPUTS;
    const amx_inputs there = {l->kernel, length, pitch, step, width}, together = {1, stride, 0, stride, AMX_INPUTS};
    uint8_t columns[AMX_PIXELS * NETWORK_MOST_INPUTS + 64] __attribute__((aligned(64))), order[64];
    if (!width) vnni_order(length, order);
    for (int32_t pixel = 0; pixel < pixels; pixel += AMX_PIXELS) {
        pixel = least(pixel, pixels - AMX_PIXELS); /* some once more */
        int32_t row = pixel / l->out_size, column = pixel % l->out_size;
        const uint8_t *from[AMX_PIXELS];
        uint8_t *const out = y + pixel * l->out_channels;
        if (width) {
            amx_pixels(l, x + row * l->stride * pitch + column * step, &there, weights, out);
            continue;
        }
        for (int32_t p = 0; p < AMX_PIXELS; p++) {
            from[p] = x + row * l->stride * pitch + column * step;
            if (++column == l->out_size) column = 0, row++;
        }
        vnni_columns(AMX_PIXELS, from, l->kernel, pitch, length, stride, order, columns);
        amx_pixels(l, columns, &together, weights, out);
    }
}

/* As `layer`; returns whether it was computed. Few inputs or pixels are not worth unpacking all weights. */
KERNEL int amx_layer(const network_layer *l, const uint8_t *x, uint8_t *y)
{
    const int32_t kernel = l->kernel, inputs = kernel * kernel * l->channels, outputs = l->out_channels, size = l->out_size;
    const int32_t pitch = (l->size + 2 * l->pad) * l->channels, tiles = (inputs + AMX_INPUTS - 1) / AMX_INPUTS;
    const int32_t width = size % AMX_PIXELS ? 0 : amx_width(kernel * l->channels);
    if (!amx_is_there || vnni_refuses(l) || outputs % AMX_CHANNELS || inputs < 2 * AMX_INPUTS) return 0;
    uint8_t weights[NETWORK_MOST_TILES] __attribute__((aligned(64))); /* or a row lies in two lines of the cache */
    uint8_t memory[NETWORK_MOST_ROWS + 64]; /* as many rows as fit, with borders */
    const int32_t most = kernel == 1 ? size : least(size, (NETWORK_MOST_ROWS / pitch - kernel) / l->stride + 1);
    if (most * size < 2 * AMX_PIXELS || tiles * outputs * AMX_INPUTS > NETWORK_MOST_TILES) return 0;
    vnni_unpack(l, l->weights, outputs / LANES, 16 * tiles, weights);
    amx_begin(width ? width : AMX_INPUTS);
    for (int32_t row = 0, rows; row < size; row += rows) {
        rows = least(most, size - row);
        while (rows * size < AMX_PIXELS) row--, rows++; /* some once more */
        const uint8_t *in = x + row * l->stride * pitch;
        if (kernel > 1) {
            vnni_rows(l, x, row * l->stride - l->pad, (rows - 1) * l->stride + kernel, memory);
            in = memory;
        }
        amx_output(l, in, pitch, rows, width, weights, y + row * size * outputs);
    }
    __asm__ volatile("tilerelease");
    return 1;
}
#endif
