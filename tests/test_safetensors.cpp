// safetensors: what is written reads back, equals the format's byte layout, and every way in which a header
// can lie has its own message.
#include "model/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace {

class Safetensors : public testing::Test {
protected:
    void SetUp() override {
        char pattern[] = "/tmp/test_safetensors.XXXXXX";
        directory_ = mkdtemp(pattern);
        path_ = directory_ + "/x.safetensors";
    }
    void TearDown() override { std::filesystem::remove_all(directory_); }

    void write_bytes(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }
    // A file of this header (not padded) and as many data bytes.
    void write_file(const std::string& header, int64_t data_bytes) {
        const uint64_t length = header.size();
        std::string bytes(reinterpret_cast<const char*>(&length), 8);
        write_bytes(bytes + header + std::string(static_cast<size_t>(data_bytes), '\1'));
    }
    std::string complaint() {
        try {
            SafetensorsFile file(path_);
        } catch (const InputError& error) {
            EXPECT_NE(std::string(error.what()).find(path_), std::string::npos)
                << "no path in: " << error.what();
            return error.what();
        }
        return "(accepted)";
    }
    void expect_complaint(const std::string& header, int64_t data_bytes,
                          const std::vector<std::string>& phrases) {
        write_file(header, data_bytes);
        const std::string text = complaint();
        for (const std::string& phrase : phrases)
            EXPECT_NE(text.find(phrase), std::string::npos) << "no \"" << phrase << "\" in: " << text;
    }

    std::string directory_, path_;
};

std::string tensor_json(const std::string& name, const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
           ",\"data_offsets\":" + offsets + "}";
}

TEST_F(Safetensors, RoundTrip) {
    const float values[6] = {1, -2, 3.5f, 0, -0.0f, 1e-30f};
    const uint16_t halves[2] = {0x3f80, 0x4000};
    write_safetensors(
        path_,
        {{"z \"quoted\" \xc3\xa9", "F32", {2, 3}, [&](AtomicFile& f) { f.write(values, sizeof values); }},
         {"a", "BF16", {2}, [&](AtomicFile& f) { f.write(halves, sizeof halves); }},
         {"empty", "F32", {0, 7}, [](AtomicFile&) {}},
         {"scalar", "I64", {}, [](AtomicFile& f) { f.write("12345678", 8); }}},
        {{"format", "pt"}});
    const SafetensorsFile file(path_);
    ASSERT_EQ(file.entries().size(), 4u);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    const SafetensorsEntry& first = file.entries().at("z \"quoted\" \xc3\xa9");
    EXPECT_EQ(first.dtype, "F32");
    EXPECT_EQ(first.shape, (std::vector<int64_t>{2, 3}));
    ASSERT_EQ(first.bytes, 24);
    EXPECT_EQ(std::memcmp(first.data, values, 24), 0);
    EXPECT_EQ(std::memcmp(file.entries().at("a").data, halves, 4), 0);
    EXPECT_EQ(file.entries().at("empty").bytes, 0);
    EXPECT_TRUE(file.entries().at("scalar").shape.empty());
    EXPECT_EQ(file.entries().at("scalar").bytes, 8);
}

// The layout itself, byte by byte, so that a change of ours cannot agree with itself alone.
TEST_F(Safetensors, BytesOfTheFormat) {
    write_safetensors(path_, {{"w", "U8", {3}, [](AtomicFile& f) { f.write("abc"); }}}, {});
    const std::string header = "{\"w\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}";
    const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
    std::string expected(8, '\0');
    expected[0] = static_cast<char>(padded.size());
    EXPECT_EQ(read_file(path_), expected + padded + "abc");
}

TEST_F(Safetensors, ForeignFilesWithUnalignedDataAndAnyOrderLoad) {
    write_file(
        "{" + tensor_json("b", "F32", "[1]", "[3,7]") + "," + tensor_json("a", "U8", "[3]", "[0,3]") + " }",
        7);
    const SafetensorsFile file(path_);
    EXPECT_EQ(file.entries().at("b").data - file.entries().at("a").data, 3);
    EXPECT_TRUE(file.metadata().empty());
}

TEST_F(Safetensors, LyingHeadersAreRefused) {
    const std::string a = tensor_json("a", "F32", "[2]", "[0,8]");
    expect_complaint("not json", 0, {"not valid JSON"});
    expect_complaint("[1,2]", 0, {"not a JSON object", "array"});
    expect_complaint("{" + a + "," + a + "}", 8, {"lists a name twice", "\"a\""});
    expect_complaint("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
                     {"lists a name twice", "dtype"});
    expect_complaint("{\"a\":7}", 0, {"malformed tensor entry", "tensor a"});
    expect_complaint("{" + tensor_json("a", "Q4", "[2]", "[0,8]") + "}", 8,
                     {"unknown tensor dtype", "tensor a", "Q4"});
    expect_complaint("{" + tensor_json("a", "F32", "[-2]", "[0,8]") + "}", 8,
                     {"invalid tensor shape", "[-2]"});
    expect_complaint("{" + tensor_json("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", 0,
                     {"invalid tensor shape"});  // product overflows to 0 in 64 bits
    expect_complaint("{" + tensor_json("a", "F32", "[2]", "[8,0]") + "}", 8,
                     {"invalid data_offsets", "[8,0]"});
    expect_complaint("{" + tensor_json("a", "F32", "[2]", "[0,99999999999999999999]") + "}", 8,
                     {"invalid data_offsets"});
    expect_complaint("{" + tensor_json("a", "F32", "[3]", "[0,8]") + "}", 8,
                     {"do not fit its shape", "12 bytes for F32[3]", "8 bytes"});
    expect_complaint("{" + a + "," + tensor_json("b", "F32", "[2]", "[4,12]") + "}", 12,
                     {"tensors overlap", "tensor b", "begin at 8", "got 4"});
    expect_complaint("{" + a + "," + tensor_json("b", "F32", "[1]", "[12,16]") + "}", 16,
                     {"unused bytes between tensors", "tensor b"});
    expect_complaint("{" + a + "}", 7, {"truncated", "tensor a"});
    expect_complaint("{" + a + "}", 9, {"bytes after the last tensor", "1 more"});
    expect_complaint("{\"__metadata__\":{\"k\":1}," + a + "}", 8, {"__metadata__"});
    expect_complaint("{\"__metadata__\":3," + a + "}", 8, {"__metadata__"});
}

TEST_F(Safetensors, BrokenLengthsAreRefused) {
    write_bytes("");
    EXPECT_NE(complaint().find("too short"), std::string::npos);
    write_bytes("1234567");
    EXPECT_NE(complaint().find("too short"), std::string::npos);
    write_bytes(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10));
    EXPECT_NE(complaint().find("header length is absurd"), std::string::npos);
    write_bytes(std::string("\x03\0\0\0\0\0\0\0{}", 10));
    EXPECT_NE(complaint().find("longer than the file"), std::string::npos);
}

// Text that is hostile, not merely wrong.
TEST_F(Safetensors, HostileHeadersAreRefused) {
    const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
    expect_complaint("{\"a\":" + deep + "}", 0, {"not valid JSON", "levels of nesting"});
    expect_complaint("{\"__metadata__\":{\"a\":" + deep + "}}", 0, {"levels of nesting"});
    expect_complaint(std::string(100'000, '['), 0, {"levels of nesting"});
    expect_complaint("{\"a\":1e999}", 0, {"not valid JSON"});
    expect_complaint("{\"a\":[" + std::string(1'000'000, ' ') + "\"x\"]}", 0, {"malformed tensor entry"});
    expect_complaint("{" + tensor_json("a", "F32", "{}", "[0,8]") + "}", 8, {"invalid tensor shape"});
    expect_complaint("{" + tensor_json("a", "F32", "[2]", "{}") + "}", 8, {"invalid data_offsets"});
    const std::string wordy = "\"" + std::string(1'000'000, 'y') + "\"";
    write_file("{\"a\":{\"dtype\":" + wordy + ",\"shape\":[],\"data_offsets\":[0,0]}}", 0);
    EXPECT_LT(complaint().size(), 500u);
}

// A download that stopped anywhere: no prefix of a good file is good.
TEST_F(Safetensors, NoPrefixOfAFileIsAccepted) {
    write_safetensors(path_,
                      {{"a", "F32", {2}, [](AtomicFile& f) { f.write("12345678"); }},
                       {"b", "U8", {3}, [](AtomicFile& f) { f.write("abc"); }}},
                      {{"format", "pt"}});
    const std::string whole = read_file(path_);
    for (size_t size = 0; size < whole.size(); ++size) {
        write_bytes(whole.substr(0, size));
        EXPECT_NE(complaint(), "(accepted)") << size << " of " << whole.size() << " bytes";
    }
}

TEST_F(Safetensors, AWriterThatFailsLeavesNothing) {
    const auto fail = [](AtomicFile& file) {
        file.write("1234");
        throw std::runtime_error("no");
    };
    EXPECT_THROW(write_safetensors(path_, {{"a", "F32", {2}, fail}}, {}), std::runtime_error);
    EXPECT_THROW(write_safetensors(path_, {{"a", "F32", {2}, [](AtomicFile& f) { f.write("1234"); }}}, {}),
                 InternalError);  // fewer bytes than the shape says
    EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

}  // namespace
