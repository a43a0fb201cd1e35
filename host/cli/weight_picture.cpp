// SPDX-License-Identifier: Apache-2.0
#include "weight_picture.hpp"

#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "text.hpp"

namespace attend::cli {
namespace {

constexpr double decades = 4.0;

// From the ground to the ink, as the picture alone has them.
constexpr std::array<std::array<double, 3>, 4> ramp{{{252, 252, 251}, {158, 197, 244}, {42, 120, 214}, {13, 39, 80}}};

std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text)
        out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&quot;" : std::string(1, c);
    return out;
}

std::string base64(const std::string& bytes) {
    constexpr const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    out.reserve(bytes.size() / 3 * 4 + 4);
    for (std::size_t at = 0; at < bytes.size(); at += 3) {
        std::uint32_t word = 0;
        const std::size_t count = std::min<std::size_t>(3, bytes.size() - at);
        for (std::size_t n = 0; n < 3; ++n)
            word = word << 8 | (n < count ? static_cast<std::uint8_t>(bytes[at + n]) : 0u);
        for (std::size_t n = 0; n < 4; ++n) out += n <= count ? digits[word >> (18 - 6 * n) & 63] : '=';
    }
    return out;
}

// palette null: grey.
Result<std::string> encode_png(const std::vector<std::uint8_t>& pixels, std::int64_t width, std::int64_t height,
                               const std::vector<std::uint8_t>* palette) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width);
    image.height = static_cast<png_uint_32>(height);
    image.format = palette != nullptr ? PNG_FORMAT_RGB_COLORMAP : PNG_FORMAT_GRAY;
    image.colormap_entries = palette != nullptr ? 256 : 0;
    const void* colours = palette != nullptr ? palette->data() : nullptr;
    png_alloc_size_t bytes = 0;
    std::string out;
    if (png_image_write_to_memory(&image, nullptr, &bytes, 0, pixels.data(), 0, colours) != 0) {
        out.resize(bytes);
        if (png_image_write_to_memory(&image, out.data(), &bytes, 0, pixels.data(), 0, colours) != 0) {
            out.resize(bytes);
            return out;
        }
    }
    return Error{ErrorCode::io, std::string("heatmap: the picture cannot be encoded: ") + image.message, ""};
}

std::vector<std::uint8_t> levels_of(const std::vector<double>& shades) {
    std::vector<std::uint8_t> levels(shades.size());
    // What is seen at all is never drawn as nothing.
    std::transform(shades.begin(), shades.end(), levels.begin(), [](double shade) {
        return static_cast<std::uint8_t>(shade <= 0.0 ? 0.0 : std::clamp(std::round(shade * 255.0), 1.0, 255.0));
    });
    return levels;
}

// Where an axis of `length` places gets its numbers: a handful of round ones, from 0 on.
std::vector<std::int64_t> ticks_of(std::int64_t length) {
    std::int64_t step = 1;
    for (std::int64_t ten = 1; length > 8 * step; ten *= 10)
        for (const std::int64_t factor : {1, 2, 5})
            if (length > 8 * step) step = factor * ten;
    std::vector<std::int64_t> ticks;
    for (std::int64_t at = 0; at < length; at += step) ticks.push_back(at);
    return ticks;
}

std::string place(double number) { return number_text(number, 6); }

}  // namespace

void WeightPicture::take(const WeightRows& rows, std::int64_t batch, std::int64_t head) {
    if (cells_.empty()) {
        rows_ = {rows.q_len, std::min(rows.q_len, most_cells_)};
        columns_ = {rows.kv_len, std::min(rows.kv_len, most_cells_)};
        cells_.assign(static_cast<std::size_t>(rows_.count * columns_.count), 0.0);
    }
    if (cells_.empty()) return;
    for (std::int64_t i = rows.first; i < rows.first + rows.count; ++i) {
        const float* row = rows.row(batch, head, i);
        std::int64_t cell = i * rows_.count / rows_.length;
        while (i < rows_.edge(cell)) --cell;
        while (i >= rows_.edge(cell + 1)) ++cell;
        double* to = cells_.data() + cell * columns_.count;
        const double in_rows = static_cast<double>(rows_.edge(cell + 1) - rows_.edge(cell));
        for (std::int64_t column = 0; column < columns_.count; ++column) {
            const std::int64_t begin = columns_.edge(column), end = columns_.edge(column + 1);
            if (pool_ == Pool::mean) {
                double sum = 0.0;
                for (std::int64_t j = begin; j < end; ++j) sum += static_cast<double>(row[j]);
                to[column] += sum / (in_rows * static_cast<double>(end - begin));
            } else {
                float most = row[begin];
                for (std::int64_t j = begin + 1; j < end; ++j) most = row[j] > most ? row[j] : most;
                to[column] = std::max(to[column], static_cast<double>(most));
            }
        }
    }
}

double WeightPicture::largest() const {
    double most = 0.0;
    for (const double cell : cells_) most = cell > most ? cell : most;
    return most;
}

std::vector<double> WeightPicture::shades(Colours colours) const {
    const double most = largest();
    std::vector<double> shades(cells_.size(), 0.0);
    for (std::size_t at = 0; at < cells_.size() && most > 0.0; ++at) {
        if (!(cells_[at] > 0.0)) continue;
        const double share = cells_[at] / most;
        shades[at] = colours == Colours::linear ? share : std::max(0.0, 1.0 + std::log10(share) / decades);
    }
    return shades;
}

std::string WeightPicture::text(Colours colours) const {
    constexpr const char* marks[] = {"·", "░", "▒", "▓", "█"};
    const std::vector<double> all = shades(colours);
    std::string out;
    for (std::size_t at = 0; at < all.size(); ++at) {
        out += marks[all[at] <= 0.0 ? 0 : std::clamp(static_cast<int>(all[at] * 4.0) + 1, 1, 4)];
        if ((at + 1) % static_cast<std::size_t>(columns_.count) == 0) out += "\n";
    }
    return out;
}

Result<std::string> WeightPicture::png(Colours colours) const {
    constexpr std::int64_t small = 512;
    const std::int64_t side = std::max<std::int64_t>(1, std::max(rows_.count, columns_.count)),
                       zoom = std::max<std::int64_t>(1, small / side);
    const std::vector<std::uint8_t> levels = levels_of(shades(colours));
    const std::int64_t width = std::max<std::int64_t>(1, columns_.count * zoom),
                       height = std::max<std::int64_t>(1, rows_.count * zoom);
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(width * height), 0);
    for (std::int64_t y = 0; y < rows_.count * zoom; ++y)
        for (std::int64_t x = 0; x < columns_.count * zoom; ++x)
            pixels[static_cast<std::size_t>(y * width + x)] =
                levels[static_cast<std::size_t>(y / zoom * columns_.count + x / zoom)];
    std::vector<std::uint8_t> palette;
    for (int level = 0; level < 256; ++level) {
        const double at = level / 255.0 * static_cast<double>(ramp.size() - 1);
        const auto low = std::min(static_cast<std::size_t>(at), ramp.size() - 2);
        const double share = at - static_cast<double>(low);
        for (std::size_t part = 0; part < 3; ++part)
            palette.push_back(
                static_cast<std::uint8_t>(std::round(ramp[low][part] * (1.0 - share) + ramp[low + 1][part] * share)));
    }
    return encode_png(pixels, width, height, &palette);
}

// The cells are a mask through which the ink shows, so that one picture serves a light and a dark ground.
Result<std::string> WeightPicture::svg(const std::string& title, Colours colours) const {
    constexpr double longest = 640, left = 76, top = 68, bar = 18, right = 168, bottom = 52;
    const std::int64_t side = std::max<std::int64_t>(1, std::max(queries(), keys()));
    const double width = std::max(160.0, longest * static_cast<double>(keys()) / static_cast<double>(side)),
                 height = std::max(160.0, longest * static_cast<double>(queries()) / static_cast<double>(side));
    const double all_width = std::max(left + width + right, 480.0), all_height = top + height + bottom;
    // Where there are more cells than pixels, leaving some out would lose lines.
    const bool shrunk = static_cast<double>(columns()) > width || static_cast<double>(rows()) > height;
    Result<std::string> picture = cells_.empty()
                                      ? encode_png({0}, 1, 1, nullptr)
                                      : encode_png(levels_of(shades(colours)), columns_.count, rows_.count, nullptr);
    if (!picture) return picture.error();
    std::string out =
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + place(all_width) + " " + place(all_height) +
        "\" width=\"" + place(all_width) + "\" height=\"" + place(all_height) +
        "\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>" + escaped(title) +
        "</title>\n<style>\n.ground{fill:#fcfcfb}.ink{fill:#0b3a82}.text{fill:#33322f}"
        ".line{stroke:#8a8984;fill:none}\n@media (prefers-color-scheme:dark){.ground{fill:#1a1a19}"
        ".ink{fill:#a9d0ff}.text{fill:#d8d7d2}.line{stroke:#777671}}\n</style>\n"
        "<rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n<text class=\"text\" x=\"16\" y=\"26\" "
        "font-size=\"14\" font-weight=\"600\">" +
        escaped(title) + "</text>\n<defs>\n<mask id=\"weights\" maskUnits=\"userSpaceOnUse\" x=\"" + place(left) +
        "\" y=\"" + place(top) + "\" width=\"" + place(width) + "\" height=\"" + place(height) +
        "\">\n<image id=\"cells\" x=\"" + place(left) + "\" y=\"" + place(top) + "\" width=\"" + place(width) +
        "\" height=\"" + place(height) + "\" preserveAspectRatio=\"none\"" +
        (shrunk ? "" : " style=\"image-rendering:pixelated\"") + " href=\"data:image/png;base64," + base64(*picture) +
        "\"/>\n</mask>\n<linearGradient id=\"bar\" x1=\"0\" y1=\"1\" x2=\"0\" y2=\"0\">"
        "<stop offset=\"0\" stop-color=\"#000\"/><stop offset=\"1\" stop-color=\"#fff\"/>"
        "</linearGradient>\n";
    const double bar_left = left + width + 24, bar_height = std::min(height, 320.0);
    const auto rectangle = [&](const char* kind, double x, double y, double w, double h, const char* more) {
        return std::string("<rect class=\"") + kind + "\" x=\"" + place(x) + "\" y=\"" + place(y) + "\" width=\"" +
               place(w) + "\" height=\"" + place(h) + "\"" + more + "/>\n";
    };
    const auto label = [&](double x, double y, const char* anchor, const std::string& words, const char* more = "") {
        return "<text class=\"text\" x=\"" + place(x) + "\" y=\"" + place(y) + "\" text-anchor=\"" + anchor + "\"" +
               more + ">" + escaped(words) + "</text>\n";
    };
    const auto line = [&](double x1, double y1, double x2, double y2) {
        return "<line class=\"line\" x1=\"" + place(x1) + "\" y1=\"" + place(y1) + "\" x2=\"" + place(x2) + "\" y2=\"" +
               place(y2) + "\"/>\n";
    };
    out += "<mask id=\"bar-mask\" maskUnits=\"userSpaceOnUse\" x=\"" + place(bar_left) + "\" y=\"" + place(top) +
           "\" width=\"" + place(bar) + "\" height=\"" + place(bar_height) + "\">" +
           rectangle("", bar_left, top, bar, bar_height, " fill=\"url(#bar)\"") + "</mask>\n</defs>\n";
    out += rectangle("ink", left, top, width, height, " mask=\"url(#weights)\"");
    out += rectangle("line", left, top, width, height, "");
    for (const std::int64_t tick : ticks_of(keys())) {
        const double x = left + (static_cast<double>(tick) + 0.5) * width / static_cast<double>(keys());
        out += line(x, top + height, x, top + height + 5) + label(x, top + height + 18, "middle", std::to_string(tick));
    }
    for (const std::int64_t tick : ticks_of(queries())) {
        const double y = top + (static_cast<double>(tick) + 0.5) * height / static_cast<double>(queries());
        out += line(left - 5, y, left, y) + label(left - 9, y + 4, "end", std::to_string(tick));
    }
    out += label(left + width / 2, top + height + 38, "middle", "key");
    const std::string turn = " transform=\"rotate(-90 18 " + place(top + height / 2) + ")\"";
    out += label(18, top + height / 2, "middle", "query row", turn.c_str());
    // The bar.
    out += rectangle("ink", bar_left, top, bar, bar_height, " mask=\"url(#bar-mask)\"") +
           rectangle("line", bar_left, top, bar, bar_height, "");
    const double most = largest();
    const int steps = colours == Colours::linear ? 2 : static_cast<int>(decades);
    for (int step = 0; step <= steps; ++step) {
        const double share = static_cast<double>(step) / steps, y = top + bar_height * (1.0 - share);
        const double value = colours == Colours::linear ? most * share : most * std::pow(10.0, (share - 1.0) * decades);
        out += line(bar_left + bar, y, bar_left + bar + 5, y) +
               label(bar_left + bar + 9, y + 4, "start",
                     (step == 0 && colours == Colours::logarithmic ? "\u2264 " : "") + number_text(value, 3));
    }
    out += label(bar_left, top - 14, "start", "weight (share of row)");
    double below = top + bar_height + 22;
    for (const std::string& words : {std::string(colours == Colours::linear ? "linear" : "logarithmic"),
                                     std::string(queries() == rows() && keys() == columns() ? "one cell a pair"
                                                 : pool_ == Pool::mean                      ? "mean of a cell"
                                                                                            : "largest of a cell")}) {
        out += label(bar_left, below, "start", words, " font-size=\"11\"");
        below += 15;
    }
    return out + "</svg>\n";
}

Result<std::string> WeightPicture::html(const std::string& title, Colours colours) const {
    Result<std::string> drawing = svg(title, colours);
    if (!drawing) return drawing.error();
    std::string out =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
        "content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\"><title>" +
        escaped(title) +
        "</title>\n<style>\nbody{margin:0;padding:1rem;background:#fcfcfb;color:#33322f;font:14px "
        "system-ui,sans-serif}\n"
        "svg{max-width:100%;height:auto;display:block}\noutput{display:block;min-height:1.4em;padding-left:16px;"
        "font-variant-numeric:tabular-nums}\n@media "
        "(prefers-color-scheme:dark){body{background:#1a1a19;color:#d8d7d2}}\n"
        "</style></head><body>\n" +
        *drawing + "<output aria-live=\"polite\">Move over the picture to read weights.</output>\n<script>\n";
    const auto number = [](const char* name, double value) {
        std::array<char, 40> text{};
        std::snprintf(text.data(), text.size(), "%.17g", value);
        return std::string(name) + "=" + text.data();
    };
    out += "const " + number("queries", static_cast<double>(queries())) + "," +
           number("keys", static_cast<double>(keys())) + "," + number("rows", static_cast<double>(rows())) + "," +
           number("columns", static_cast<double>(columns())) + "," + number("most", largest()) + "," +
           number("decades", colours == Colours::linear ? 0.0 : decades) + ";\n";
    out += R"(const cells=document.getElementById('cells'),frame=document.querySelectorAll('rect.line')[0],
out=document.querySelector('output'),image=new Image();
image.onload=()=>{
  const canvas=document.createElement('canvas');canvas.width=columns;canvas.height=rows;
  const pen=canvas.getContext('2d');pen.drawImage(image,0,0);
  const data=pen.getImageData(0,0,columns,rows).data;
  const span=(name,cell,count,length)=>{
    const a=Math.floor(cell*length/count),b=Math.floor((cell+1)*length/count)-1;
    return a===b?name+' '+a:name+'s '+a+' to '+b;};
  document.querySelector('svg').addEventListener('pointermove',event=>{
    const box=frame.getBoundingClientRect();
    const c=Math.floor((event.clientX-box.left)/box.width*columns),r=Math.floor((event.clientY-box.top)/box.height*rows);
    if(c<0||r<0||c>=columns||r>=rows){out.textContent='';return;}
    const level=data[(r*columns+c)*4]/255;
    const weight=level===0?0:decades?most*Math.pow(10,(level-1)*decades):most*level;
    out.textContent=span('query row',r,rows,queries)+', '+span('key',c,columns,keys)+': weight '+
      (level===0?(decades?'0 or below '+(most*Math.pow(10,-decades)).toPrecision(2):'0'):'about '+weight.toPrecision(2));
  });
};
image.src=cells.getAttribute('href');
</script></body></html>
)";
    return out;
}

}  // namespace attend::cli
