// Small functions that the C files share.

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t round_up(int64_t size, int64_t multiple)
{
    return (size + multiple - 1) / multiple * multiple;
}

// eˣ to 1 part in 10⁷: 2ᵏ · eʳ with r in ±ln(2)/2, and a polynomial for eʳ.
INLINE float fast_exp(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float k = __builtin_rintf(x * 1.44269504f);
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } power = {.i = ((int32_t)k + 127) << 23};
    return p * power.f;
}

INLINE float logistic(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// tanh(x), to 1 part in 10⁷ of 1.
INLINE float fast_tanh(float x) { return 2.0f * logistic(2.0f * x) - 1.0f; }

// d · g · (1 − g): the gradient before the logistic function of a gate g.
INLINE float through_logistic(float d, float g) { return d * g * (1.0f - g); }
