// SPDX-License-Identifier: Apache-2.0
// The small language of port tables (sdk/docs/plugin-abi.md, "Ports"): shapes of tensors in terms of sizes and options,
// and initialisers of weights.
//   shape       = alternative { "|" alternative } ;  alternative = [ guard ":" ] ( dims | "broadcast(" dims ")" | "scalar" ) ;
//   dims        = dim { "," dim } ;  dim = expr | "upto(" expr ")", the latter once at most ;
//   init        = alternative { "|" alternative } ;  alternative = [ guard ":" ] name [ "(" expr { "," expr } ")" ] [ "as" word ] ;
//   guard       = term { "&" term } ;  term = expr | "!" expr | expr ( "=" | "!=" ) value ;
//   expr        = sums, products and quotients of integers, decimals, sizes (B Hq Hkv Nq Nk D Dv), option names, other
//                 symbols, or(a,b) (a if it has a value), given(a,b) (what a given tensor binds a to, else b), sqrt(a), ceil(a),
//                 min(a,b), max(a,b), count(list) and item(list,n) of an option that is a list (n from 0; no value past its
//                 end) and parentheses.
// The first alternative whose guard holds counts (of a tensor's rank, where several do); if none does, the port does not exist in this mode.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attend/config/options.hpp"
#include "attend/error.hpp"

namespace attend {

// Sizes bound so far and the options of the call.
struct PortScope {
    std::map<std::string, double, std::less<>> symbols;
    const std::vector<OptionSpec>* specs{};
    const std::vector<OptionValue>* values{};
    std::map<std::string, bool, std::less<>> inputs{};  // those of the mechanism, and whether the call has them

    [[nodiscard]] const OptionValue* option(std::string_view name) const;
    [[nodiscard]] const OptionSpec* spec(std::string_view name) const;
    // A symbol, or an option that is a number or a boolean and has a value, or 1 for an input that is there and 0 else.
    [[nodiscard]] std::optional<double> number(std::string_view name) const;
    // An option that is a list of integers or words and has a value, or NULL.
    [[nodiscard]] const std::vector<std::int64_t>* list(std::string_view name) const;
};

class Expression {
public:
    static Result<Expression> parse(std::string_view text);
    // open: given(a,b) has no value as long as nothing has bound a.
    [[nodiscard]] std::optional<double> evaluate(const PortScope& scope, bool open = false) const;
    // The name, if the expression comes down to a single symbol without a value that is no option: the tensor's extent
    // binds it.
    [[nodiscard]] std::optional<std::string> bindable(const PortScope& scope) const;
    [[nodiscard]] const std::string& text() const noexcept { return text_; }

private:
    struct Node;
    std::string text_;
    std::shared_ptr<const Node> root_;
    friend class ExpressionParser;
};

struct Guard {
    struct Term {
        std::string name, value;
        bool negated{false}, compares{false};
    };
    std::vector<Term> terms;
    [[nodiscard]] bool holds(const PortScope& scope) const;
    [[nodiscard]] bool mentions(std::string_view name, std::string_view value) const;
};

struct ShapeAlternative {
    Guard guard;
    std::string text;
    std::vector<Expression> dims;
    bool broadcast{false};
    bool dynamic_rows{false};     // one extent, upto(rows), is a bound: the data decides
    std::size_t dynamic_axis{0};  // which one
};

class PortShape {
public:
    static Result<PortShape> parse(std::string_view text);
    // The first alternative whose guard holds, of the given rank if one has it; null if none holds.
    [[nodiscard]] const ShapeAlternative* choose(const PortScope& scope,
                                                 std::optional<std::size_t> rank = std::nullopt) const;
    [[nodiscard]] const std::vector<ShapeAlternative>& alternatives() const noexcept { return alternatives_; }

private:
    std::vector<ShapeAlternative> alternatives_;
};

struct Initialiser {
    std::string name;  // "normal", "zeros", ...
    std::vector<double> arguments;
    std::string same_as;     // same(port): the tensor of another weight
    std::string table_name;  // the spelling that seeds it, "Wq"; empty: the port's name
};

class PortInit {
public:
    static Result<PortInit> parse(std::string_view text);
    [[nodiscard]] Result<Initialiser> choose(const PortScope& scope) const;

private:
    struct Alternative {
        Guard guard;
        std::string name, table_name, same_as;
        std::vector<Expression> arguments;
    };
    std::vector<Alternative> alternatives_;
};

}  // namespace attend
