// SPDX-License-Identifier: Apache-2.0
// Points of hyperbolic space in double precision, by the formulas alone: what tests of hyperbolic-attention share.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "specs/spec.hpp"

namespace specs::space {

using Row = std::vector<double>;

struct Point {
    double rho{};  // sqrt(c) times the distance from the origin
    Row u;         // direction, zero at the origin
};

inline double length(const Row& x) {
    double sum = 0;
    for (const double v : x) sum += v * v;
    return std::sqrt(sum);
}
inline Row times(Row x, double factor) {
    for (double& v : x) v *= factor;
    return x;
}

inline Point point(const std::string& map, Row x, double c, double scale, double max_radius) {
    const double root = std::sqrt(c);
    Point p;
    double sign = 1;
    if (map == "hyperboloid") x.erase(x.begin());
    if (map == "pseudoPolar") {
        p.rho = root * std::abs(x.back());
        sign = x.back() < 0 ? -1 : 1;
        x.pop_back();
    }
    const double size = length(x);
    if (map == "exp0") p.rho = root * scale * size;
    if (map == "poincare") p.rho = 2 * std::atanh(root * size);
    if (map == "klein") p.rho = std::atanh(root * size);
    if (map == "hyperboloid") p.rho = std::asinh(root * size);
    if (size == 0) p.rho = 0;
    p.rho = std::min(p.rho, max_radius);
    p.u = p.rho == 0 ? Row(x.size(), 0.0) : times(x, sign / size);
    return p;
}

inline Row coordinates(const std::string& map, const Point& p, double c, double scale) {
    const double root = std::sqrt(c);
    if (map == "poincare") return times(p.u, std::tanh(p.rho / 2) / root);
    if (map == "klein") return times(p.u, std::tanh(p.rho) / root);
    Row out;
    if (map == "hyperboloid") {
        out = times(p.u, std::sinh(p.rho) / root);
        out.insert(out.begin(), std::cosh(p.rho) / root);
    } else if (map == "pseudoPolar") {
        out = p.u;
        out.push_back(p.rho / root);
    } else {
        out = times(p.u, p.rho / (root * scale));
    }
    return out;
}

inline double distance(const Point& a, const Point& b, double c) {
    double squares = 0;
    for (std::size_t d = 0; d < a.u.size(); ++d) squares += (a.u[d] - b.u[d]) * (a.u[d] - b.u[d]);
    const double radial = std::sinh((a.rho - b.rho) / 2);
    return 2 / std::sqrt(c) *
           std::asinh(std::sqrt(radial * radial + std::sinh(a.rho) * std::sinh(b.rho) * squares / 4));
}

// The Einstein midpoint of points with weights; the origin if there are none.
inline Point midpoint(const std::vector<Point>& points, const Row& weights, std::size_t width) {
    long double time = 0;
    std::vector<long double> sum(width, 0.0L);
    for (std::size_t n = 0; n < points.size(); ++n) {
        for (std::size_t d = 0; d < width; ++d)
            sum[d] += static_cast<long double>(weights[n]) * std::sinh(static_cast<long double>(points[n].rho)) *
                      static_cast<long double>(points[n].u[d]);
        time += static_cast<long double>(weights[n]) * std::cosh(static_cast<long double>(points[n].rho));
    }
    long double squares = 0;
    for (const long double s : sum) squares += s * s;
    const long double size = std::sqrt(squares);
    Point p{0, Row(width, 0.0)};
    if (size == 0) return p;
    p.rho = static_cast<double>(std::asinh(size / std::sqrt((time - size) * (time + size))));
    for (std::size_t d = 0; d < width; ++d) p.u[d] = static_cast<double>(sum[d] / size);
    return p;
}

}  // namespace specs::space
