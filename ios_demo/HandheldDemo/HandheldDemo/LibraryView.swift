import SwiftUI
import UniformTypeIdentifiers

struct LibraryView: View {
    @State private var items: [Library.Item] = []
    @State private var isImporting = false
    @State private var message: String?

    var body: some View {
        NavigationStack {
            List {
                if items.isEmpty { EmptyLibraryView() }
                ForEach(items) { item in
                    NavigationLink(value: item) {
                        Label(item.name, systemImage: item.kind == .bundle ? "film" : "text.bubble")
                    }
                }
                Section { Button("Import", systemImage: "square.and.arrow.down") { isImporting = true } }
                if let message { Section { Text(message).foregroundStyle(.red) } }
            }
            .navigationTitle("Handheld")
            .navigationDestination(for: Library.Item.self) { item in
                switch item.kind {
                case .bundle: BundleView(folder: item.folder)
                case .pack: ChatView(folder: item.folder)
                }
            }
            .fileImporter(isPresented: $isImporting, allowedContentTypes: [.folder, .data]) { chosen in
                add(chosen)
            }
            .refreshable { items = Library.items() }
            .onAppear { items = Library.items() }
            .task { Library.tidy() }
        }
    }

    private func add(_ chosen: Result<URL, Error>) {
        do {
            try Library.add(chosen.get())
            message = nil
        } catch {
            message = "\(error)"
        }
        items = Library.items()
    }
}

private struct EmptyLibraryView: View {
    var body: some View {
        VStack(spacing: 12) {
            Text("No bundles yet").font(.headline)
            Text("Put the folder that `handheld export` wrote into On My iPhone › Handheld in the Files app, then pull down here; or import it from another place.")
                .multilineTextAlignment(.center)
                .foregroundStyle(.secondary)
        }
        .padding()
    }
}
