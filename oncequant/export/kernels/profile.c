/* The time of one kernel call, for `oncequant.export.profile`: behind the kernels, which are in the same file. */

/* As `Call` in timing.py. */
typedef struct {
    int32_t op, bits, in_bits, size, channels, kernel, stride, out_size, out_channels;
} profile_call;

/* As `Memory` in timing.py; what the bytes are hardly matters, as long as all calls have enough. */
typedef struct {
    const uint32_t *weights;
    const int32_t *bias;
    const float *ratio;
    const uint8_t *table;
    uint8_t *arena;
    float *logits;
} profile_memory;

enum { DEPTHWISE, CONV, LINEAR, PIXELS, LOOKUP, ADD, MULTIPLY, MEAN, MAXPOOL, SUBSAMPLE, PAD_CHANNELS };

static void call_once(const profile_call *c, const network_layer *l, const profile_memory *m)
{
    const int32_t pixels = c->size * c->size, count = pixels * c->channels, before = (c->out_channels - c->channels) / 2;
    /* side by side, as in the arena of a network */
    const uint8_t *const x = m->arena, *const second = x + (count + 15) / 16 * 16;
    uint8_t *const y = m->arena + (second - x) * (c->op == ADD || c->op == MULTIPLY ? 2 : 1);
    uint8_t *const scratch = y + (c->out_size * c->out_size * c->out_channels + 15) / 16 * 16;
    switch (c->op) {
    case DEPTHWISE: depthwise(l, x, y, scratch); break;
    case CONV: layer(l, x, y, 0, scratch); break;
    case LINEAR: layer(l, x, y, m->logits, scratch); break;
    case PIXELS: from_pixels(x, y, pixels, c->channels, m->table); break;
    case LOOKUP: lookup(x, y, count, m->table); break;
    case ADD: add(x, second, y, count, 0.5f, 0.25f, 1.0f, 255); break;
    case MULTIPLY: multiply(x, second, y, pixels, c->channels, 3, 0, 0.01f, 5, 255); break;
    case MEAN: mean(x, y, pixels, c->channels, 3, 0.01f, 5, 255, scratch); break;
    case MAXPOOL: maxpool(x, y, c->size, c->channels); break;
    case SUBSAMPLE: subsample(x, y, c->size, c->channels); break;
    case PAD_CHANNELS:
        pad_channels(x, y, pixels, c->channels, before, c->out_channels - c->channels - before, 3);
        break;
    }
}

/* Nanoseconds that so many calls take of the processor; one before them refills the caches. */
int64_t profile_time(const profile_call *c, const profile_memory *m, int32_t repeats)
{
    network_layer l = {0};
    struct timespec start, end;
    l.weights = m->weights;
    l.bias = m->bias;
    l.ratio = m->ratio;
    l.bits = c->bits;
    l.factor = c->bits == 1 ? 2 : 1; /* one bit is -1 or 1 */
    l.offset = c->bits == 1 ? 1 : 1 << (c->bits ? c->bits - 1 : 0);
    l.size = c->size;
    l.channels = c->channels;
    l.kernel = c->kernel;
    l.stride = c->stride;
    l.out_size = c->out_size;
    l.out_channels = c->out_channels;
    l.in_zero = 3;
    l.in_max = (1 << c->in_bits) - 1;
    l.zero = 3;
    l.max = 255;
    call_once(c, &l, m);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    for (int32_t i = 0; i < repeats; i++) call_once(c, &l, m);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return (int64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (end.tv_nsec - start.tv_nsec);
}
