// SPDX-License-Identifier: Apache-2.0
// Error sentences of the engines, put together without allocation: place, value, what is accepted.
#pragma once

#include <cstdint>

#include "attend/plugin.h"

namespace attend::ATTEND_ISA {

class Message {
public:
    Message& operator<<(const char* text) {
        for (; *text != '\0'; ++text) put(*text);
        return *this;
    }
    Message& operator<<(int64_t number) {
        char digits[20];
        int count = 0;
        uint64_t size = number < 0 ? 0u - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
        do {
            digits[count++] = static_cast<char>('0' + size % 10);
            size /= 10;
        } while (size != 0);
        if (number < 0) put('-');
        while (count > 0) put(digits[--count]);
        return *this;
    }
    // `where` is a static text: the port or field.
    attend_status fail(attend_error* error, attend_status status, const char* where) {
        text_[length_] = '\0';
        return attend_fail(error, status, text_, where);
    }

private:
    void put(char letter) {
        if (length_ + 1 < sizeof text_) text_[length_++] = letter;
    }
    char text_[320];
    uint64_t length_{0};
};

}  // namespace attend::ATTEND_ISA
