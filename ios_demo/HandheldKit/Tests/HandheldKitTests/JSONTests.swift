import XCTest

@testable import HandheldKit

final class JSONTests: XCTestCase {
    func testReadsWhatJSONHas() throws {
        let text = #" {"a": [1, -2.5e3, true, false, null], "é\u00e9\ud83d\ude00": "\"\\\/\b\f\n\r\t"} "#
        XCTAssertEqual(
            try JSON.parse(Array(text.utf8)),
            .object([
                .init("a", .array([.integer(1), .number(-2500), .bool(true), .bool(false), .null])),
                .init("éé😀", .string("\"\\/\u{8}\u{c}\n\r\t")),
            ]))
    }

    func testRefusesWhatTwoReadersMightReadDifferently() {
        let texts = [
            "", "{", "[1,]", "{\"a\":1,}", "{\"a\":1,\"a\":2}", "NaN", "Infinity", "1e999", "01", "+1", "1.", ".5", "'a'",
            "\"\u{1}\"", "\"\\x\"", "\"\\ud800\"", "\"\\udc00\\ud800\"", "{} {}", "tru", "{a:1}",
            String(repeating: "[", count: 100_000),
        ]
        for text in texts { XCTAssertThrowsError(try JSON.parse(Array(text.utf8)), text.prefix(20).description) }
        XCTAssertThrowsError(try JSON.parse([0x22, 0xFF, 0x22]), "not UTF-8")
    }

    func testNumbersKeepTheirBits() throws {
        XCTAssertEqual(try JSON.parse(Array("9223372036854775807".utf8)), .integer(.max))
        XCTAssertEqual(try JSON.parse(Array("9223372036854775808".utf8)), .number(9_223_372_036_854_775_808))
    }
}
