# fish completion for jobctl(1); jobctl itself knows the words, this only asks it.

function __jobctl_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token --cut-at-cursor)
    set -lx COMP_WORDS (string join \n -- $words | string collect --no-trim-newlines)
    set -lx _JOBCTL_COMPLETE lines_complete
    set -l current $words[-1]
    for line in ($words[1] 2>/dev/null)
        set -l fields (string split \t -- $line)
        switch $fields[1]
            case plain
                printf '%s\t%s\n' $fields[2] $fields[3]
            case dir
                __fish_complete_directories $current
            case file
                __fish_complete_path $current
            case command
                __fish_complete_command
            case user
                __fish_complete_users
            case group
                __fish_complete_groups
        end
    end
end

complete --command jobctl --no-files --arguments '(__jobctl_complete)'
