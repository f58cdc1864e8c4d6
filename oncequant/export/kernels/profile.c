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
    uint8_t *arena;
    float *logits;
} profile_memory;

enum { DEPTHWISE, CONV, LINEAR };

static void call_once(const profile_call *c, const network_layer *l, const profile_memory *m)
{
    /* side by side, as in the arena of a network */
    uint8_t *const y = m->arena + (c->size * c->size * c->channels + 15) / 16 * 16;
    uint8_t *const scratch = y + (c->out_size * c->out_size * c->out_channels + 15) / 16 * 16;
    switch (c->op) {
    case DEPTHWISE: depthwise(l, m->arena, y, scratch); break;
    case CONV: layer(l, m->arena, y, 0, scratch); break;
    case LINEAR: layer(l, m->arena, y, m->logits, scratch); break;
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
    l.offset = c->bits == 1 ? 1 : 1 << (c->bits - 1);
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
    l.pad = (int16_t)(c->kernel / 2);
    l.dilation = 1;
    call_once(c, &l, m);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    for (int32_t i = 0; i < repeats; i++) call_once(c, &l, m);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return (int64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (end.tv_nsec - start.tv_nsec);
}
