/* Start of a program on an emulated Cortex-M: counts the instructions of one call, then runs the self-test. */
#include <stdint.h>
#include <stdio.h>

#include "network.h"

extern int main(void);
extern uint32_t bss_start, bss_end, stack_top, data_start, data_end, data_load;
extern void initialise_monitor_handles(void);
void _exit(int);

#define SYSTICK ((volatile uint32_t *)0xE000E010)
#define TICK 40u /* instructions: one takes 1 ns with `-icount shift=0`, the clock has 25 MHz */

static volatile uint32_t wraps;
static uint8_t pixels[NETWORK_PIXELS];
static float logits[NETWORK_CLASSES];
static uint64_t arena[(NETWORK_ARENA_BYTES + 15) / 8];

static uint64_t ticks(void)
{
    uint32_t before, value;
    do {
        before = wraps;
        value = SYSTICK[2];
    } while (before != wraps);
    return ((uint64_t)before << 24) + (0xffffffu - value);
}

void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xfu << 20; /* the FPU, where there is one */
    __asm volatile("dsb\n isb");
    for (uint32_t *to = &bss_start; to < &bss_end;) *to++ = 0;
    for (uint32_t *to = &data_start, *from = &data_load; to < &data_end;) *to++ = *from++;
    initialise_monitor_handles();
    for (int i = 0; i < NETWORK_PIXELS; i++) pixels[i] = (uint8_t)(i * 7);
    SYSTICK[1] = 0xffffffu;
    SYSTICK[2] = 0;
    SYSTICK[0] = 7;
    while (!SYSTICK[2]) {} /* until it has been loaded */
    const uint64_t start = ticks();
    network_run(pixels, logits, (uint8_t *)arena + (16 - (uintptr_t)arena % 16) % 16);
    const uint64_t end = ticks();
    SYSTICK[0] = 0;
    printf("%lu thousand instructions\n", (unsigned long)((end - start) * TICK / 1000));
    _exit(main());
}

static void tick(void) { wraps++; }
static void fault(void) { _exit(99); }

__attribute__((section(".vectors"), used)) void (*const vectors[16])(void) = {
    (void (*)(void))&stack_top, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, tick};
