// SPDX-License-Identifier: Apache-2.0
// Points of hyperbolic space as (rho, u): rho = sqrt(c) times the distance from the origin, u a direction of length one
// (zero at the origin). Coordinates of five kinds are read and written; everything in double precision.
#pragma once

#include <math.h>

#include "attend/author/mechanism.hpp"

namespace attend::ATTEND_ISA {

enum class PointMap : int32_t { exp0, pseudo_polar, poincare, klein, hyperboloid };  // exp0 as an output: tangent

constexpr bool has_radial_axis(PointMap map) { return map == PointMap::pseudo_polar || map == PointMap::hyperboloid; }

enum class PointFault : int32_t { none, not_finite, outside, off_sheet };

// u is `factor` times the coordinates from `first` on.
struct Point {
    double rho, factor;
    PointFault fault;
};

struct PointReader {
    PointMap map{PointMap::exp0};
    double root_c{1.0}, scale{1.0}, max_radius{5.0};
    int64_t width{0};  // of the coordinates that are read

    int64_t dimension() const { return has_radial_axis(map) ? width - 1 : width; }
    int64_t first() const { return map == PointMap::hyperboloid ? 1 : 0; }

    Point read(const float* x) const {
        double squares = 0.0;
        for (int64_t d = 0; d < width; ++d) {
            if (x[d] - x[d] != 0.0f) return {0.0, 0.0, PointFault::not_finite};
            const auto axis = static_cast<double>(x[d]);
            if (d >= first() && d < first() + dimension()) squares += axis * axis;
        }
        const double length = ::sqrt(squares);
        double rho = 0.0, sign = 1.0;
        switch (map) {
            case PointMap::exp0: rho = root_c * scale * length; break;
            case PointMap::pseudo_polar: {
                const auto radius = static_cast<double>(x[width - 1]);
                rho = length > 0.0 ? root_c * ::fabs(radius) : 0.0;
                sign = radius < 0.0 ? -1.0 : 1.0;
                break;
            }
            case PointMap::poincare:
            case PointMap::klein:
                if (!(root_c * length < 1.0)) return {0.0, 0.0, PointFault::outside};
                rho = ::atanh(root_c * length) * (map == PointMap::poincare ? 2.0 : 1.0);
                break;
            case PointMap::hyperboloid: {
                const auto time = static_cast<double>(x[0]);
                const double off = time * time - squares - 1.0 / (root_c * root_c);
                if (!(time > 0.0) || !(::fabs(off) <= 1e-3 * time * time)) return {0.0, 0.0, PointFault::off_sheet};
                rho = ::asinh(root_c * length);
                break;
            }
        }
        if (rho > max_radius) rho = max_radius;
        return {rho, rho > 0.0 ? sign / length : 0.0, PointFault::none};
    }
};

// The point at rho in the direction sum / length, or the origin where length is 0.
struct PointWriter {
    PointMap map{PointMap::exp0};
    double root_c{1.0}, scale{1.0};

    int64_t width(int64_t dimension) const { return has_radial_axis(map) ? dimension + 1 : dimension; }
    void write(double rho, const double* sum, double length, int64_t dimension, float* to) const {
        double radius = 0.0;
        switch (map) {
            case PointMap::exp0: radius = rho / (root_c * scale); break;
            case PointMap::pseudo_polar: radius = 1.0; break;
            case PointMap::poincare: radius = ::tanh(0.5 * rho) / root_c; break;
            case PointMap::klein: radius = ::tanh(rho) / root_c; break;
            case PointMap::hyperboloid: radius = ::sinh(rho) / root_c; break;
        }
        if (map == PointMap::hyperboloid) *to++ = static_cast<float>(::cosh(rho) / root_c);
        for (int64_t d = 0; d < dimension; ++d)
            to[d] = length > 0.0 ? static_cast<float>(radius * (sum[d] / length)) : 0.0f;
        if (map == PointMap::pseudo_polar) to[dimension] = static_cast<float>(rho / root_c);
    }
};

}  // namespace attend::ATTEND_ISA
