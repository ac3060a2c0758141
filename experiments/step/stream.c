// The memory traffic of one optimizer step and nothing else: reads p, g, m, v, writes p, m, v, and only adds.
// Compiled on first use, called through ctypes (stream.py).

#include <pthread.h>
#include <stdint.h>
#include <string.h>

enum { MAX_THREADS = 256 };

typedef struct {
    int64_t tensors;
    const int64_t *table;  // five numbers a tensor: the addresses of p, g, m, v, and the number of elements
    int32_t is_16_bit;     // p and g have 2 bytes an element, not 4; m and v have 4
    int64_t start, end;    // the stretch of one thread, counted over all tensors
} Share;

static void stream_32(float *restrict p, const float *restrict g, float *restrict m, float *restrict v, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i];
        m[i] += grad;
        v[i] += grad;
        p[i] += m[i];
    }
}

static void stream_16(uint16_t *restrict p, const uint16_t *restrict g, float *restrict m, float *restrict v,
                      int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)g[i] << 16;
        float grad;
        memcpy(&grad, &bits, 4);
        m[i] += grad;
        v[i] += grad;
        p[i] = (uint16_t)(p[i] + g[i]);
    }
}

static void *work(void *argument) {
    const Share *share = argument;
    int64_t first = 0;  // of the tensor, counted over all
    for (int64_t i = 0; i < share->tensors; i++) {
        const int64_t *row = share->table + 5 * i;
        int64_t from = share->start > first ? share->start - first : 0;
        int64_t to = share->end - first < row[4] ? share->end - first : row[4];
        if (from < to) {
            float *m = (float *)row[2] + from, *v = (float *)row[3] + from;
            if (share->is_16_bit)
                stream_16((uint16_t *)row[0] + from, (const uint16_t *)row[1] + from, m, v, to - from);
            else
                stream_32((float *)row[0] + from, (const float *)row[1] + from, m, v, to - from);
        }
        first += row[4];
    }
    return NULL;
}

void stream_step(int64_t tensors, const int64_t *table, int32_t is_16_bit, int64_t elements, int64_t threads) {
    pthread_t started[MAX_THREADS];
    Share shares[MAX_THREADS];
    int is_running[MAX_THREADS];
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    for (int64_t i = 0; i < threads; i++)
        shares[i] = (Share){tensors, table, is_16_bit, elements * i / threads, elements * (i + 1) / threads};
    for (int64_t i = 1; i < threads; i++) is_running[i] = pthread_create(&started[i], NULL, work, &shares[i]) == 0;
    work(&shares[0]);
    for (int64_t i = 1; i < threads; i++) {
        if (is_running[i]) pthread_join(started[i], NULL);
        else work(&shares[i]);
    }
}
