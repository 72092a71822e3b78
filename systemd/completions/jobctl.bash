# bash completion for jobctl(1); jobctl itself knows the words, this only asks it.

_jobctl()
{
    local cur kind word IFS=$'\n'
    cur=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    while IFS=$'\t' read -r kind word _; do
        case $kind in
            plain) COMPREPLY+=("$word"); [[ $word == *= ]] && compopt -o nospace ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            command) COMPREPLY+=($(compgen -c -- "$cur")) ;;
            user) COMPREPLY+=($(compgen -u -- "$cur")) ;;
            group) COMPREPLY+=($(compgen -g -- "$cur")) ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]:0:COMP_CWORD+1}"$'\n' _JOBCTL_COMPLETE=lines_complete \
        "${COMP_WORDS[0]}" 2>/dev/null)
}

complete -F _jobctl jobctl
