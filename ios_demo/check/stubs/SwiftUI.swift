// The part of SwiftUI's interface that HandheldDemo uses, for type checks where SwiftUI is not installed.
// Agreement with this file is all that such a check proves.
@_exported import CoreGraphics
@_exported import Foundation
import UniformTypeIdentifiers

@MainActor @preconcurrency public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

extension Never: View { public var body: Never { fatalError() } }

public protocol Leaf: View where Body == Never {}
extension Leaf { public var body: Never { fatalError() } }

public struct EmptyView: Leaf { public nonisolated init() {} }
public struct Group2<each V: View>: Leaf { init(_ views: repeat each V) {} }
public struct Either<A: View, B: View>: Leaf {}
extension Optional: View where Wrapped: View { public var body: Never { fatalError() } }

@resultBuilder
public struct ViewBuilder {
    public static func buildBlock() -> EmptyView { fatalError() }
    public static func buildBlock<V: View>(_ view: V) -> V { view }
    public static func buildBlock<each V: View>(_ views: repeat each V) -> Group2<repeat each V> { fatalError() }
    public static func buildExpression<V: View>(_ view: V) -> V { view }
    public static func buildIf<V: View>(_ view: V?) -> V? { view }
    public static func buildEither<A: View, B: View>(first: A) -> Either<A, B> { fatalError() }
    public static func buildEither<A: View, B: View>(second: B) -> Either<A, B> { fatalError() }
}

@MainActor @preconcurrency public protocol Scene {}
public struct WindowGroup<Content: View>: Scene { public init(@ViewBuilder content: () -> Content) {} }

@resultBuilder public struct SceneBuilder { public static func buildBlock<S: Scene>(_ scene: S) -> S { scene } }

@MainActor @preconcurrency public protocol App {
    associatedtype Content: Scene
    @SceneBuilder var body: Content { get }
    init()
}
extension App { public static func main() { fatalError() } }

public protocol ObservableObject: AnyObject {}
@propertyWrapper public struct Published<Value> {
    public init(wrappedValue: Value) { fatalError() }
    @available(*, unavailable) public var wrappedValue: Value { get { fatalError() } set { fatalError() } }
    public static subscript<T: AnyObject>(
        _enclosingInstance instance: T, wrapped wrapped: ReferenceWritableKeyPath<T, Value>,
        storage storage: ReferenceWritableKeyPath<T, Published<Value>>
    ) -> Value { get { fatalError() } set { fatalError() } }
}

@propertyWrapper public struct Binding<Value> {
    public init() { fatalError() }
    public var wrappedValue: Value { get { fatalError() } nonmutating set { fatalError() } }
    public var projectedValue: Binding<Value> { self }
}
@propertyWrapper public struct State<Value> {
    public init(wrappedValue: Value) { fatalError() }
    public var wrappedValue: Value { get { fatalError() } nonmutating set { fatalError() } }
    public var projectedValue: Binding<Value> { fatalError() }
}
@MainActor @preconcurrency @propertyWrapper public struct StateObject<T: ObservableObject> {
    public init(wrappedValue: @autoclosure @escaping () -> T) { fatalError() }
    public var wrappedValue: T { fatalError() }
    public var projectedValue: Wrapper { fatalError() }
    @MainActor @dynamicMemberLookup public struct Wrapper {
        public subscript<V>(dynamicMember path: ReferenceWritableKeyPath<T, V>) -> Binding<V> { fatalError() }
    }
}

public struct Text: Leaf { public init(_ text: some StringProtocol) {} }
public struct Label: Leaf { public init(_ title: some StringProtocol, systemImage: String) {} }
public struct LabeledContent: Leaf { public init(_ title: some StringProtocol, value: String) {} }
public struct Button<L: View>: Leaf {
    public init(_ title: some StringProtocol, action: @escaping @MainActor () -> Void) where L == Text {}
    public init(_ title: some StringProtocol, systemImage: String, action: @escaping @MainActor () -> Void) where L == Label {}
}
public struct ShareLink: Leaf { public init(_ title: some StringProtocol, item: URL) {} }
public struct TextField: Leaf { public init(_ title: some StringProtocol, text: Binding<String>) {} }
public struct ProgressView: Leaf { public init() {} }
public struct Slider: Leaf { public init(value: Binding<Double>, in range: ClosedRange<Double>, step: Double) {} }
public struct Picker<V: Hashable, C: View>: Leaf {
    public init(_ title: some StringProtocol, selection: Binding<V>, @ViewBuilder content: () -> C) {}
}
public struct Section<C: View>: Leaf {
    public init(@ViewBuilder content: () -> C) {}
    public init(_ title: some StringProtocol, @ViewBuilder content: () -> C) {}
}
public struct List<C: View>: Leaf {
    public init(@ViewBuilder content: () -> C) {}
    public init<T: RandomAccessCollection>(_ data: T, @ViewBuilder row: @escaping (T.Element) -> C) where T.Element: Identifiable {}
}
public struct ForEach<C: View>: Leaf {
    public init<T: RandomAccessCollection>(_ data: T, @ViewBuilder content: @escaping (T.Element) -> C) where T.Element: Identifiable {}
    public init<T: RandomAccessCollection, I: Hashable>(
        _ data: T, id: KeyPath<T.Element, I>, @ViewBuilder content: @escaping (T.Element) -> C
    ) {}
}
public struct ScrollView<C: View>: Leaf { public init(@ViewBuilder content: () -> C) {} }
public struct VStack<C: View>: Leaf {
    public init(alignment: HorizontalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> C) {}
}
public struct HStack<C: View>: Leaf { public init(spacing: CGFloat? = nil, @ViewBuilder content: () -> C) {} }
public struct NavigationStack<C: View>: Leaf { public init(@ViewBuilder root: () -> C) {} }
public struct NavigationLink<L: View>: Leaf {
    public init<V: Hashable>(value: V?, @ViewBuilder label: () -> L) {}
}
public struct Image: Leaf {
    public init(decorative image: CGImage, scale: CGFloat) {}
    public func resizable() -> Image { self }
}
public struct TimelineContext { public let date: Date }
public struct PeriodicTimelineSchedule {}
extension PeriodicTimelineSchedule {
    public static func periodic(from start: Date, by interval: TimeInterval) -> PeriodicTimelineSchedule { fatalError() }
}
public struct TimelineView<C: View>: Leaf {
    public init(_ schedule: PeriodicTimelineSchedule, @ViewBuilder content: @escaping (TimelineContext) -> C) {}
}

public struct Font { public static let headline = Font(), caption = Font() }
public struct Color: Leaf { public static let black = Color(), red = Color(), secondary = Color(), accentColor = Color() }
public enum ContentMode { case fit, fill }
public enum HorizontalAlignment { case leading, center, trailing }
public enum TextAlignment { case leading, center, trailing }
public struct Edges { public static let all = Edges(), horizontal = Edges(), vertical = Edges() }
public struct SubmitTriggers { public static let text = SubmitTriggers() }
public struct Alignment { public static let leading = Alignment(), trailing = Alignment(), center = Alignment() }

extension View {
    public func font(_ font: Font?) -> some View { self }
    public func foregroundStyle(_ color: Color) -> some View { self }
    public func multilineTextAlignment(_ alignment: TextAlignment) -> some View { self }
    public func padding(_ edges: Edges = .all, _ length: CGFloat? = nil) -> some View { self }
    public func frame(maxWidth: CGFloat? = nil, alignment: Alignment = .center) -> some View { self }
    public func disabled(_ disabled: Bool) -> some View { self }
    public func aspectRatio(_ ratio: CGFloat?, contentMode: ContentMode) -> some View { self }
    public func scaledToFit() -> some View { self }
    public func navigationTitle(_ title: some StringProtocol) -> some View { self }
    public func navigationDestination<D: Hashable, C: View>(for data: D.Type, @ViewBuilder destination: @escaping (D) -> C) -> some View { self }
    public func overlay<V: View>(@ViewBuilder content: () -> V) -> some View { self }
    public func fileImporter(
        isPresented: Binding<Bool>, allowedContentTypes: [UTType],
        onCompletion: @escaping (Result<URL, any Error>) -> Void
    ) -> some View { self }
    public func task(_ action: @escaping @MainActor @Sendable () async -> Void) -> some View { self }
    public func refreshable(action: @escaping @MainActor @Sendable () async -> Void) -> some View { self }
    public func onAppear(perform: (@MainActor () -> Void)? = nil) -> some View { self }
    public func onDisappear(perform: (@MainActor () -> Void)? = nil) -> some View { self }
    public func onSubmit(of: SubmitTriggers = .text, _ action: @escaping @MainActor () -> Void) -> some View { self }
    public func tag<V: Hashable>(_ tag: V) -> some View { self }
    public func textSelection(_ selectability: TextSelectability) -> some View { self }
}
public struct TextSelectability { public static let enabled = TextSelectability() }

extension URL {
    public func startAccessingSecurityScopedResource() -> Bool { fatalError() }
    public func stopAccessingSecurityScopedResource() {}
}
