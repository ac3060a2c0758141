// Projected stochastic descent on the toy problem f(theta) = theta over [-1, 1], many seeds at once, for tens of
// millions of steps. Compiled on first use, called through ctypes (long_toy.py). Gradients are k^2 with probability 1/k
// and -k otherwise; a seed has the same gradients for every optimizer and every beta2.

#include <math.h>
#include <stdint.h>

enum { LANES = 64, BLOCK = 64 };  // seeds, and steps whose gradients are drawn at once
enum { ADAM, AMSGRAD, ADOPT, CLIPPED };

static uint64_t hashed(uint64_t x) {  // the finalizer of splitmix64
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// The gradients of `steps` steps from step `first` on, LANES in a row.
void toy_gradients(int64_t k, int64_t first, int64_t steps, double *gradients) {
    const uint64_t large = UINT64_MAX / (uint64_t)k;
    for (int64_t t = 0; t < steps; t++)
        for (int64_t lane = 0; lane < LANES; lane++) {
            // An increment of its own for every seed, so that no two share a sequence at some distance.
            uint64_t increment = hashed((uint64_t)lane + 1) | 1;
            uint64_t drawn = hashed((uint64_t)(first + t + 1) * increment);
            gradients[t * LANES + lane] = drawn < large ? (double)(k * k) : -(double)k;
        }
}

// `steps` steps from theta = 0 with learning rate lr / sqrt(1 + decay * t).
// marks: `count` numbers of finished steps, increasing; after each, theta goes to a row of `curve` (count, LANES).
// total: (LANES), the sum of theta over the last tenth of the steps.
void toy_descend(int32_t kind, int64_t k, int64_t steps, double beta1, double beta2, double eps, double lr,
                 double decay, int64_t count, const int64_t *marks, double *curve, double *total) {
    double theta[LANES] = {0}, m[LANES] = {0}, v[LANES] = {0}, top[LANES] = {0}, gradients[BLOCK * LANES];
    double power1 = 1, power2 = 1;  // of the betas, for Adam's corrections
    const int64_t tail = steps - steps / 10;
    int64_t mark = 0;
    for (int64_t lane = 0; lane < LANES; lane++) total[lane] = 0;
    for (int64_t t = 0; t < steps; t++) {
        if (t % BLOCK == 0) toy_gradients(k, t, BLOCK, gradients);
        const double *g = gradients + t % BLOCK * LANES;
        const double rate = lr / sqrt(1 + decay * (double)t);
        if (kind == ADAM || kind == AMSGRAD) {
            power1 *= beta1;
            power2 *= beta2;
            const double step = rate / (1 - power1), root = 1 / sqrt(1 - power2);
            for (int64_t lane = 0; lane < LANES; lane++) {
                m[lane] += (1 - beta1) * (g[lane] - m[lane]);
                v[lane] = beta2 * v[lane] + (1 - beta2) * g[lane] * g[lane];
                top[lane] = top[lane] > v[lane] ? top[lane] : v[lane];
                double under = sqrt(kind == AMSGRAD ? top[lane] : v[lane]) * root + eps;
                theta[lane] -= step * m[lane] / under;
            }
        } else if (t == 0) {
            for (int64_t lane = 0; lane < LANES; lane++) v[lane] = g[lane] * g[lane];
        } else {
            const double clip = kind == CLIPPED ? sqrt(sqrt((double)t)) : INFINITY;
            for (int64_t lane = 0; lane < LANES; lane++) {
                double root = sqrt(v[lane]), u = g[lane] / (root > eps ? root : eps);
                u = u > clip ? clip : u;
                u = u < -clip ? -clip : u;
                m[lane] += (1 - beta1) * (u - m[lane]);
                theta[lane] -= rate * m[lane];
                v[lane] = beta2 * v[lane] + (1 - beta2) * g[lane] * g[lane];
            }
        }
        for (int64_t lane = 0; lane < LANES; lane++) {
            theta[lane] = theta[lane] > 1 ? 1 : theta[lane];
            theta[lane] = theta[lane] < -1 ? -1 : theta[lane];
        }
        if (t >= tail)
            for (int64_t lane = 0; lane < LANES; lane++) total[lane] += theta[lane];
        if (mark < count && marks[mark] == t + 1) {
            for (int64_t lane = 0; lane < LANES; lane++) curve[mark * LANES + lane] = theta[lane];
            mark++;
        }
    }
}
