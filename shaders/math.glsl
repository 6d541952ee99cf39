// SPDX-License-Identifier: MIT
//
// math.glsl: functions whose precision Vulkan leaves open. exp() of a driver may be off by 3 + 2 |x| ulp; this one is within 2.

// e^x; infinity above, 0 below what f32 holds.
float exp_f32(float x)
{
    if (!(x < 88.72283))
        return x >= 88.72283 ? uintBitsToFloat(0x7f800000u) : x;
    if (x < -103.0)
        return 0.0;
    // x = n ln 2 + r, |r| <= ln 2 / 2. The high part of ln 2 has 9 bits, so that n times it is exact.
    float n = roundEven(x * 1.44269504);
    precise float r = x - n * 0.693359375;
    r = r - n * -2.12194440e-4;
    float p = 1.98412698e-4;
    p = p * r + 1.38888889e-3;
    p = p * r + 8.33333333e-3;
    p = p * r + 4.16666667e-2;
    p = p * r + 1.66666667e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    // In two steps, since 2^n alone may lie outside the normal numbers.
    int h = int(n) / 2;
    return p * uintBitsToFloat(uint(h + 127) << 23) * uintBitsToFloat(uint(int(n) - h + 127) << 23);
}
