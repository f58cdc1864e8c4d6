/* Many pictures in one call, for `oncequant.export.compiled`. */
#include "network.h"

const int32_t network_numbers[] = {NETWORK_SIZE, NETWORK_CHANNELS, NETWORK_CLASSES, NETWORK_ARENA_BYTES};

void network_batch(const uint8_t *pixels, float *logits, int64_t count, void *arena)
{
    for (int64_t i = 0; i < count; i++) network_run(pixels + i * NETWORK_PIXELS, logits + i * NETWORK_CLASSES, arena);
}
