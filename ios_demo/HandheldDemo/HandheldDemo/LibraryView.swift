import SwiftUI

struct LibraryView: View {
    @State private var items: [Library.Item] = []

    var body: some View {
        NavigationStack {
            List(items) { item in
                NavigationLink(value: item) {
                    Label(item.name, systemImage: item.kind == .bundle ? "film" : "text.bubble")
                }
            }
            .overlay { if items.isEmpty { EmptyLibraryView() } }
            .navigationTitle("Handheld")
            .navigationDestination(for: Library.Item.self) { item in
                switch item.kind {
                case .bundle: BundleView(folder: item.folder)
                case .pack: ChatView(folder: item.folder)
                }
            }
            .refreshable { items = Library.items() }
            .onAppear { items = Library.items() }
        }
    }
}

private struct EmptyLibraryView: View {
    var body: some View {
        VStack(spacing: 12) {
            Text("No bundles yet").font(.headline)
            Text("Put the folder that `handheld export` wrote into On My iPhone › Handheld in the Files app, then pull down here.")
                .multilineTextAlignment(.center)
                .foregroundStyle(.secondary)
        }
        .padding()
    }
}
